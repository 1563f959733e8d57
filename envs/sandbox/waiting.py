"""The process of the next call, forked and made ready while there is time."""

from __future__ import annotations

import gc
import json
import math
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from envs.sandbox import child
from envs.sandbox.descriptors import make_places, put_in_place
from envs.sandbox.messages import receive
from envs.sandbox.room import Room
from envs.sandbox.session import serve_session
from envs.sandbox.syscalls import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    clone,
    install_seccomp,
    landlock_restrict,
    prctl,
    set_limit,
)

PATIENCE_S = 5.0
"""For the kernel to forget the processes of the last call."""

YIELDS = 300
"""Thousandths of the cgroup's memory that a call counts more than the first process, which is far smaller."""

_leave = os._exit  # a program may replace what the module holds


@dataclass(slots=True)
class Spare:
    """The process of the next call, forked while there is time: it waits for what to run."""

    pid: int
    link: socket.socket
    begun: int  # what is said here cannot be taken back: that the program had its turn

    def take(self, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Give it its call. Where it is gone, the call ends without having begun."""
        with suppress(OSError):
            socket.send_fds(self.link, [json.dumps(message).encode()], descriptors)

    def has_begun(self) -> bool:
        return select.select([self.begun], [], [], 0)[0] != [] and os.read(self.begun, 1) != b""

    def forget(self) -> None:
        self.link.close()
        os.close(self.begun)


def prepare(host: socket.socket, room: Room, fault: mmap.mmap) -> Spare:
    """A process that has done all that comes before a call is known."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    begun, begins = os.pipe()
    pid = _clone_to_yield(room.oom_score) if room.oom_score >= 0 else _clone_in_time()
    if pid == 0:
        try:
            host.close()
            ours.close()
            _become_call(theirs, begins, room, fault)
        finally:
            _leave(child.NOT_STARTED)  # whatever the program did to its own interpreter
    theirs.close()
    os.close(begins)
    return Spare(pid, ours, begun)


def _clone_in_time() -> int:
    """A copy of this process; not os.fork(), whose hooks cost more than the call and seed `random` anew.

    The kernel counts what a call started until it has gone altogether: where that was as much as there may
    be, there is room a moment later.
    """
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return clone(0)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.002)


def _clone_to_yield(score: int) -> int:
    """A copy that the kernel ends before this process where their cgroup's memory is full."""
    usual = os.pread(score, 16, 0)
    os.pwrite(score, str(min(1000, int(usual) + YIELDS)).encode(), 0)  # it is inherited
    pid = -1
    try:
        pid = _clone_in_time()
    finally:
        if pid:
            os.pwrite(score, usual, 0)
    return pid


def forget(spare: Spare | None) -> None:
    """End and collect a process that waits, where there is one."""
    if spare is None:
        return
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(spare.pid, signal.SIGKILL)
        os.waitpid(spare.pid, 0)
    spare.forget()


def _become_call(link: socket.socket, begins: int, room: Room, fault: mmap.mmap) -> NoReturn:
    """In the forked process: limits, then the message, its descriptors, and the program."""
    try:
        os.setsid()
        if room.call_ruleset >= 0:
            landlock_restrict(room.call_ruleset)
        if room.call_filter:
            install_seccomp(room.call_filter)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        set_limit(resource.RLIMIT_CPU, max(1, math.ceil(room.cpu_s)), spare=1)  # first a signal that says why
        if room.dies_with_parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 1)  # it may look at itself
        link = make_places(link, begins)
        child.get_ready(room)
        message, descriptors = receive(link)
        if message is None:
            _leave(child.NOT_STARTED)
        gc.enable()
        if message["kind"] == "session":
            serve_session(link, message, descriptors, room, fault)
        link.close()
        put_in_place(message["fds"], descriptors)
        child.run(message, room, fault)
    except BaseException as error:
        os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    _leave(child.NOT_STARTED)
