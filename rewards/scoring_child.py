"""The child process in which a user's reward runs: a guard, and below it the worker with the user's code.

The worker runs the function on its main thread, so that signals and alarms work. The guard runs no code of
the user's: when the worker ends, however it ends, when the guard is asked to end, or when the process that
started it is gone, it kills the worker's whole process group and whatever else was left to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from inspect import isawaitable
from pathlib import Path
from typing import Any

from envs.episode_json import decode_episode, encode_score
from envs.sandbox.policy import SandboxPolicy, use_policy
from rewards.failures import user_frames
from rewards.forms import Form, RewardBugError, Sample, bounded

HEADER_BYTES = 4
"""Before each message: its length, big endian."""

FACTS = ("kind", "is_group", "columns", "can_split", "uses_sandbox", "note")
"""What of a form the parent is told: the fields of rewards.scoring.Facts."""

MAX_MEMORY_BYTES = 8 << 30
"""Of address space, for user code; one that needs more (a GPU does) raises its soft RLIMIT_AS itself."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NUM_REAPING_ROUNDS = 1000
LAUNCHERS_S = 2.0
"""For the launchers of sandboxes to see that the worker has gone, and to remove what theirs wrote."""
_LAUNCHER = b"envs.sandbox.launcher"


def main() -> None:
    """Argv: the socket's file descriptor, the process id of the parent."""
    handle, parent = int(sys.argv[1]), int(sys.argv[2])
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    if os.getppid() != parent:  # it died before it could be noticed
        os._exit(1)
    worker = os.fork()
    if worker:
        os.close(handle)
        os._exit(_guard(worker, awaited))
    os.setpgid(0, 0)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
    _limit_memory()
    faulthandler.enable()  # what a segmentation fault was in goes to the output's tail
    _serve(socket.socket(fileno=handle))
    os._exit(0)  # threads of the user's are not waited for


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def _limit_memory() -> None:
    """One answer that makes the function ask for too much meets a MemoryError, not the whole machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _guard(worker: int, awaited: set[signal.Signals]) -> int:
    """Wait for the worker's end or a request for it, leave nothing behind; returns an exit status."""
    status = None
    while status is None:
        if signal.sigwait(awaited) == signal.SIGTERM:
            break
        status = _reap(worker)
    with suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(worker, 0)  # what it started is the guard's from here on
    until = time.monotonic() + LAUNCHERS_S
    while any(map(_is_launcher, _children())) and time.monotonic() < until:
        for child in _children():
            if not _is_launcher(child):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        _reap(worker)
        time.sleep(0.01)
    for _ in range(NUM_REAPING_ROUNDS):  # who left the group has become a child of the guard
        for child in _children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return 0 if status is None else status


def _reap(worker: int) -> int | None:
    """Collect every child that has ended; the worker's status as a shell has it, None while it lives."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                code = os.waitstatus_to_exitcode(ended[1])
                status = code if code >= 0 else 128 - code
    return status


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _is_launcher(pid: int) -> bool:
    """Whether a process says so; one that lies has LAUNCHERS_S more to live."""
    with suppress(OSError):
        return _LAUNCHER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _serve(channel: socket.socket) -> None:
    """Load the function that the first message names; then one answer for each message, until none comes."""
    channel.set_inheritable(False)
    worker, loop = os.getpid(), asyncio.new_event_loop()
    first = _receive(channel)
    if first is None:
        return
    sys.path[:] = first["path"] or sys.path[1:]  # ours are imported; what lies beside them may not be its
    use_policy(SandboxPolicy(**first["sandbox"]))
    try:
        form = _load(first["spec"])
    except (Exception, SystemExit) as error:
        _send(channel, {"refused": _told(error)})
        return
    facts = {name: getattr(form, name) for name in FACTS}
    _send(channel, {"facts": facts, "worker": worker})
    while (request := _receive(channel)) is not None:
        answer = _answer(form, request, loop)
        if os.getpid() != worker:  # a fork of the user's that came back from the function
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that the function has left
        _send(channel, answer)


def _load(spec: str) -> Form:
    from rewards.adapters import from_file

    return from_file(spec)


def _told(error: BaseException) -> str:
    """Why a reward cannot be used: our message, or the traceback of the user's own file."""
    frames = user_frames(error)
    if not frames and isinstance(error, ValueError):
        return str(error)
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()


def _answer(form: Form, request: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    samples = [
        Sample(
            id=row["id"],
            episode=decode_episode(row["episode"]),
            token_ids=tuple(row["token_ids"]),
            step=row["step"],
            num_steps=row["num_steps"],
        )
        for row in request["samples"]
    ]
    try:
        scores = form.score(samples)
        if isawaitable(scores):
            scores = loop.run_until_complete(scores)
        found = [bounded(form.name, score, s) for score, s in zip(scores, samples, strict=True)]
    except RewardBugError as error:
        return {"bug": str(error)}
    return {"scores": [encode_score(score) for score in found]}


def _send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode("ascii")
    channel.sendall(len(data).to_bytes(HEADER_BYTES, "big") + data)


def _receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other side has closed."""
    header = _read(channel, HEADER_BYTES)
    data = header and _read(channel, int.from_bytes(header, "big"))
    return json.loads(data) if data else None


def _read(channel: socket.socket, size: int) -> bytes:
    """`size` bytes, or none at the end."""
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
