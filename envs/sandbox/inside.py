"""The first process of a sandbox: it starts each call, ends all that is left of it, and reads nothing of it.

It is restricted as its calls are. Messages are JSON over a seqpacket socket, descriptors beside them; only
the host speaks to it. It outlives a call, which it ends at its deadline.
"""

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from envs.sandbox import child
from envs.sandbox.descriptors import make_places, put_in_place
from envs.sandbox.syscalls import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    clone,
    install_seccomp,
    landlock_restrict,
    prctl,
    set_limit,
)

IDLE_S = 1.0
"""Without a call for so long, the process that waits for the next one is let go."""

ATTEMPTS = 3
"""A process that waits for its call may be gone when that comes: another one then takes it."""

MAX_MESSAGE = 192 * 1024
"""Bytes of one message: below the socket's buffer."""

_leave = os._exit  # a program may replace what the module holds


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a call of this sandbox meets, whatever the backend that made it.

    `kill_all` ends every process of the sandbox but the first. `call_ruleset` is a Landlock ruleset for calls
    alone (-1: none), `call_filter` a seccomp filter for them: they then cannot reach the first process.
    `dies_with_parent`: a call ends with the first process, where no namespace sees to it.
    """

    home: str
    temp: str
    env: dict[str, str]
    paths: list[str]
    executable: str
    seed: int
    mem_mb: int
    nproc: int
    disk_mb: int
    cpu_s: float
    kill_all: Callable[[], None]
    call_ruleset: int = -1
    call_filter: bytes = b""
    dies_with_parent: bool = False


def serve(host: socket.socket, room: Room) -> None:
    """Serve calls until the host hangs up."""
    fault = mmap.mmap(-1, 1)  # shared with a call, which says here that memory was what it lacked
    child.make_fresh(room)
    limit_processes(room)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as a call has them; they do not reach this process
        signal.signal(number, signal.SIG_DFL)
    gc.freeze()
    gc.disable()
    host.send(json.dumps({"op": "ready"}).encode())
    spare: Spare | None = None
    while True:
        spare = spare or prepare(host, room, fault)
        if not select.select([host], [], [], IDLE_S)[0]:  # an idle process holds memory
            os.kill(spare.pid, signal.SIGKILL)
            os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
            select.select([host], [], [])
        message, descriptors = receive(host)
        if message is None:
            return
        if message["op"] == "run":
            fault[0] = 0
            done = _run(host, message, descriptors, room, fault, spare)
            spare = None
            if done is None:
                return
            host.send(json.dumps(done).encode())
        for descriptor in descriptors:
            os.close(descriptor)


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
    pid = clone(0)  # not os.fork(): its hooks cost more than the call, and seed `random` anew
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


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; (None, []) when the other side has hung up."""
    try:
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 8)
    except ConnectionResetError:
        return None, []
    return (json.loads(data), descriptors) if data else (None, [])


def _run(
    host: socket.socket,
    message: dict[str, Any],
    descriptors: list[int],
    room: Room,
    fault: mmap.mmap,
    spare: Spare,
) -> dict[str, Any] | None:
    """One call to its end; None when the host hung up meanwhile."""
    started = time.monotonic()
    deadline = started + message["wall_s"]
    left = ATTEMPTS
    while True:
        left -= 1
        spare.take(message, descriptors)
        is_late, is_told, has_gone = _await_end(host, spare.pid, deadline)
        room.kill_all()
        status, cpu_s, peak_kb = _reap(spare.pid, room.kill_all)
        has_begun = spare.has_begun()
        spare.forget()
        if has_begun or is_late or is_told or has_gone or not left:
            break
        spare = prepare(host, room, fault)  # the other was gone before its call came
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
    if has_gone:
        return None
    return {
        "op": "done",
        "status": status,
        "begun": has_begun,
        "timeout": is_late,
        "memory": bool(fault[0]),
        "wall_s": time.monotonic() - started,
        "cpu_s": cpu_s,
        "peak_kb": peak_kb,
    }


def _await_end(host: socket.socket, pid: int, deadline: float) -> tuple[bool, bool, bool]:
    """Wait for a call's end: whether it is late instead, was told to end, the host is gone.

    A word of the host in mid-call is the word to end it, or the host's own end.
    """
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(host, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            events = poll.poll(max(0.0, min(left, 0.2)) * 1000)
            if any(descriptor == ended for descriptor, _ in events):
                return False, False, False
            if events:
                order, more = receive(host)
                for descriptor in more:
                    os.close(descriptor)
                return False, True, order is None
            if left <= 0:
                return True, False, False
            _reap_strays(pid)
    finally:
        os.close(ended)


def _reap_strays(call: int) -> None:
    """Collect what the call's own processes left behind, so that they do not count as running."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in (0, call):
            return
        os.waitpid(info.si_pid, 0)


def _reap(call: int, kill_all: Callable[[], None]) -> tuple[int, float, int]:
    """Wait for every process there is: wait status, CPU seconds and peak KiB of the call."""
    outcome = (0, 0.0, 0)
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:  # a process that was being made while the others were ended
                kill_all()
                time.sleep(0.0002)
                continue
        except ChildProcessError:
            return outcome
        if pid == call:
            outcome = (status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)


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
        link.close()
        put_in_place(message["fds"], descriptors)
        gc.enable()
        child.run(message, room, fault)
    except BaseException as error:
        os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    _leave(child.NOT_STARTED)


def limit_processes(room: Room) -> None:
    """The limits of each process from here on. Memory of all together is bounded by the monitor."""
    mib = 1 << 20
    set_limit(resource.RLIMIT_AS, (room.mem_mb + 512) * mib)  # what is mapped is more than what is used
    set_limit(resource.RLIMIT_FSIZE, room.disk_mb * mib)
    set_limit(resource.RLIMIT_NPROC, room.nproc)
    set_limit(resource.RLIMIT_NOFILE, 256)
    set_limit(resource.RLIMIT_CORE, 1)  # 0 still starts the program that the host may have for dumps
    set_limit(resource.RLIMIT_MEMLOCK, 0)
    set_limit(resource.RLIMIT_MSGQUEUE, 0)
    set_limit(resource.RLIMIT_STACK, 8 * mib)
