"""The host's hold on its launchers: one process a backend, which makes every sandbox of this one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from typing import Any

from envs.sandbox import cgroups, places
from envs.sandbox.base import SandboxError
from envs.sandbox.messages import MAX_MESSAGE

START_S = 20.0
"""For a launcher, and for a sandbox, to start."""

SEND_S = 5.0
"""For a launcher to take a message: it looks for them all the time."""

_START = (
    "import json, socket, sys; host = socket.socket(fileno=int(sys.argv[1])); "
    "setup = json.loads(host.recv(1 << 17)); sys.path.insert(0, setup['root']); "
    "from envs.sandbox.launcher import main; main(host, setup)"
)


class Launcher:
    """The launcher process of one backend, started when first needed; any thread and loop may use it."""

    def __init__(self, backend: str, **options: Any) -> None:
        self.backend = backend
        self.pid = 0
        self.cgroup: dict[
            str, Any
        ] = {}  # what the launcher was delegated: folder, controllers; or the reason
        self._options = options
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._number = 0
        os.register_at_fork(after_in_child=self._forget)

    @property
    def is_running(self) -> bool:
        """Whether `open` need not start it first, which takes a while."""
        return self._socket is not None and self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Have it running. Blocks, up to START_S; raises SandboxError: it does not start."""
        with self._lock:
            self._require_running()

    def open(self, request: dict[str, Any]) -> tuple[int, socket.socket]:
        """Ask for a sandbox: its number, and the socket that it answers on. Blocks for the first start.

        Raises:
            SandboxError: the launcher has ended or does not read, or the host is short of something.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SandboxError(f"a sandbox cannot be asked for: {error}") from error
        try:
            with theirs, self._lock:
                launcher = self._require_running()
                self._number += 1
                message = json.dumps({**request, "op": "open", "box": self._number}).encode()
                socket.send_fds(launcher, [message], [theirs.fileno()])
                return self._number, ours
        except OSError as error:
            ours.close()
            raise SandboxError(f"the sandbox launcher has ended, or does not read: {error}") from error
        except BaseException:
            ours.close()
            raise

    def end(self, number: int) -> None:
        """Ask for the end of a sandbox; its socket closes when nothing of it is left."""
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(json.dumps({"op": "close", "box": number}).encode())

    def stop(self) -> None:
        """End the launcher and every sandbox of it."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(START_S)
            self._socket = self._process = None

    def oom_kills(self, number: int) -> int:
        """Processes of a sandbox that the kernel ended so far since the sandbox's memory was full."""
        if "memory" not in self.cgroup.get("controllers", ()):
            return 0
        return cgroups.oom_kills(f"{self.cgroup['folder']}/{number}")

    def last_words(self) -> str:
        """The end of what the launcher wrote to its standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace").strip()

    def _forget(self) -> None:
        """In a fork of this process: the launcher stays the parent's."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._process = None
        self._lock = threading.Lock()

    def _require_running(self) -> socket.socket:
        """Its socket; starts it where it does not run."""
        if self._socket is not None and self.is_running:
            return self._socket
        if self._socket is not None:  # of one that has ended
            self._socket.close()
            self._socket = None
        try:
            self._socket, answer = self._started()
        except OSError as error:
            raise SandboxError(f"the sandbox launcher cannot be started: {error}") from error
        self.pid, self.cgroup = answer["pid"], answer["cgroup"]
        return self._socket

    def _started(self) -> tuple[socket.socket, dict[str, Any]]:
        """A new launcher's socket, and what it said first."""
        with contextlib.ExitStack() as until_it_runs:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            until_it_runs.enter_context(ours)
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- it lives as long as the launcher
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-s",
                        "-S",
                        "-B",
                        "-X",
                        "utf8",
                        "-c",
                        _START,
                        str(theirs.fileno()),
                    ],
                    env={"PYTHONHASHSEED": "0"},  # sets of text in one order, here and in every sandbox
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # a Ctrl-C ends the run; it sees that, and cleans up
                    cwd="/",
                )
            ours.settimeout(START_S)
            try:
                ours.send(json.dumps(_setup(self.backend) | self._options).encode())
                answer = ours.recv(MAX_MESSAGE)
            except OSError:
                answer = b""
            if not answer:
                self._process.kill()
                self._process.wait()
                self._process = None
                raise SandboxError(
                    f"the sandbox launcher did not start: {self.last_words() or 'it said nothing'}"
                )
            ours.settimeout(SEND_S)
            until_it_runs.pop_all()
            return ours, json.loads(answer)


def _setup(backend: str) -> dict[str, Any]:
    """What a launcher is told: where the interpreter and its packages are. Nothing of the run."""
    standard = [sysconfig.get_path("stdlib"), f"{sysconfig.get_path('stdlib')}/lib-dynload"]
    # The last part of the interpreter's path may be a link, which an environment stands by.
    folder, name = os.path.split(sys.executable)
    return {
        "root": places.ROOT,
        "backend": backend,
        "executable": f"{os.path.realpath(folder)}/{name}",
        "readable": places.readable_places(),
        "hidden": places.hidden_places(),
        "paths": [*standard, *places.package_places()],
        "temp": tempfile.gettempdir(),
    }
