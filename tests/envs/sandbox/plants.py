"""What attack programs look for on the host, and how the host sees afterwards whether they got it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self


class Plants:
    """Secrets in files, the environment, descriptors and arguments; services that listen; a process to hit.

    The process that makes it is careless on purpose: its environment holds a secret, and descriptors of its
    can be inherited.
    """

    def __init__(self, argv_secret: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="canaries-"))
        self.file_secret, self.environ_secret = secrets.token_hex(16), secrets.token_hex(16)
        self.secrets = [self.file_secret, argv_secret]
        self.argv_secret = argv_secret
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.sockets: dict[str, socket.socket] = {}
        self.descriptors: list[int] = []

    def __enter__(self) -> Self:
        self.folder.chmod(0o755)
        self.target = self.folder / "target"
        self.target.mkdir()
        self.canary = self.folder / "canary.txt"
        self.canary.write_text(self.file_secret)
        self.canary.chmod(0o644)
        if os.getuid() == 0:
            self.target.chmod(0o777)  # only the sandbox itself keeps others out
            self.canary.chmod(0o666)
        os.environ["WHETSTONE_TEST_TOKEN"] = self.environ_secret
        for path, flags in ((self.canary, os.O_RDWR), (self.folder, os.O_RDONLY), ("/", os.O_RDONLY)):
            descriptor = os.open(path, flags)
            os.set_inheritable(descriptor, True)
            self.descriptors.append(descriptor)
        self._listen("tcp", socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0))
        self._listen("udp", socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0))
        self._listen("path", socket.AF_UNIX, socket.SOCK_STREAM, f"{self.folder}/service")
        self._listen("path-datagrams", socket.AF_UNIX, socket.SOCK_DGRAM, f"{self.folder}/service-datagrams")
        self.abstract = f"whetstone-test-{secrets.token_hex(8)}"
        self._listen("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.abstract}")
        self._listen("abstract-datagrams", socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{self.abstract}-datagrams")
        for name in ("service", "service-datagrams"):
            (self.folder / name).chmod(0o777)
        self.before = self._seen()
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self.sockets.values():
            sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.victim.kill()
        self.victim.wait()
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)

    def _listen(self, name: str, family: int, kind: int, address: Any) -> None:
        sock = socket.socket(family, kind)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(50)
        sock.setblocking(False)
        self.sockets[name] = sock

    def fill(self, text: str) -> str:
        """`text` with what is planted in the place of its marks."""
        marks = {
            "CANARY": str(self.canary),
            "TARGET": str(self.target),
            "FOLDER": str(self.folder),
            "TERCES": self.environ_secret[::-1],
            "ARGV_SECRET": self.argv_secret,
            "HOST_PID": str(os.getpid()),
            "UID": str(os.getuid()),
            "VICTIM": str(self.victim.pid),
            "SOCKET": f"{self.folder}/service",
            "ABSTRACT": self.abstract,
            "PORT": str(self.sockets["tcp"].getsockname()[1]),
            "UDP_PORT": str(self.sockets["udp"].getsockname()[1]),
            "ADDRESS": _own_address(),
        }
        for mark, value in marks.items():
            text = text.replace(f"@{mark}@", value)
        return text

    def _seen(self) -> dict[str, Any]:
        if not self.canary.exists():
            return {}
        facts = self.canary.stat()
        return {
            "the canary's content": self.canary.read_text(),
            "the canary's mode, owner and time": (
                facts.st_mode,
                facts.st_uid,
                facts.st_gid,
                facts.st_mtime_ns,
            ),
            "the canary's links": facts.st_nlink,
            "the canary's attributes": os.listxattr(self.canary),
            "the folder's mode": self.folder.stat().st_mode,
            "the target's mode": self.target.stat().st_mode,
            "files in the target": os.listdir(self.target),
            "files in the folder": sorted(os.listdir(self.folder)),
            "the mount table": Path("/proc/self/mountinfo").read_text(),
            "names of shared memory": _shared_memory(),
            "the core pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
            "the host's name": socket.gethostname(),
            "our priority": os.getpriority(os.PRIO_PROCESS, self.victim.pid),
            "our processors": os.sched_getaffinity(self.victim.pid),
        }

    def problems(self) -> list[str]:
        """What changed on the host."""
        now = self._seen()
        found = [
            f"{name}: {value!r} became {now.get(name)!r}"
            for name, value in self.before.items()
            if value != now.get(name)
        ]
        if self.victim.poll() is not None:
            found.append(f"a process of the host was ended: {self.victim.returncode}")
        elif Path(f"/proc/{self.victim.pid}/stat").read_text().split()[2] == "T":
            self.victim.send_signal(signal.SIGCONT)
            found.append("a process of the host was stopped")
        for name, sock in self.sockets.items():
            try:
                sock.accept() if sock.type == socket.SOCK_STREAM else sock.recv(100)
            except BlockingIOError:
                continue
            found.append(f"the host's {name} socket was reached")
        return found


def _shared_memory() -> list[str]:
    """Names in /dev/shm of this user, or of one that sandboxes have."""
    names = []
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_uid >= 12345:
                names.append(path.name)
    return sorted(names)


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("10.255.255.255", 1))  # sends nothing: only the route is looked up
        except OSError:
            return "127.0.0.1"
        return sock.getsockname()[0]
