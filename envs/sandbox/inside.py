"""The first process of a sandbox: it starts each call, ends all that is left of it, and reads nothing of it.

It is restricted as its calls are. Messages are JSON over a seqpacket socket, descriptors beside them; only
the host speaks to it. It outlives a call, which it ends at its deadline.
"""

from __future__ import annotations

import fcntl
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
from dataclasses import dataclass
from typing import Any, NoReturn

from envs.sandbox import child
from envs.sandbox.syscalls import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    clone,
    install_seccomp,
    landlock_restrict,
    prctl,
    set_limit,
)

MAX_MESSAGE = 192 * 1024
"""Bytes of one message: below the socket's buffer."""


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
    while True:
        message, descriptors = receive(host)
        if message is None:
            return
        if message["op"] == "run":
            fault[0] = 0
            done = _run(host, message, descriptors, room, fault)
            if done is None:
                return
            host.send(json.dumps(done).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; (None, []) when the other side has hung up."""
    try:
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 8)
    except ConnectionResetError:
        return None, []
    return (json.loads(data), descriptors) if data else (None, [])


def _run(
    host: socket.socket, message: dict[str, Any], descriptors: list[int], room: Room, fault: mmap.mmap
) -> dict[str, Any] | None:
    """One call to its end; None when the host hung up meanwhile."""
    started = time.monotonic()
    deadline = started + message["wall_s"]
    pid = clone(0)  # not os.fork(): its hooks cost more than the call, and seed `random` anew
    if pid == 0:
        _become_call(message, descriptors, room, fault)
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
    ended = os.pidfd_open(pid)
    is_late = has_gone = False
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(host, select.POLLIN)
        while not is_late and not has_gone:
            left = deadline - time.monotonic()
            events = poll.poll(max(0.0, min(left, 0.2)) * 1000)
            if any(descriptor == ended for descriptor, _ in events):
                break
            if events:  # a word of the host in mid-call is the word to end it, or its end
                order, more = receive(host)
                for descriptor in more:
                    os.close(descriptor)
                has_gone = order is None
                break
            is_late = left <= 0
            _reap_strays(pid)
    finally:
        os.close(ended)
    room.kill_all()
    status, cpu_s, peak_kb = _reap(pid, room.kill_all)
    if has_gone:
        return None
    return {
        "op": "done",
        "status": status,
        "timeout": is_late,
        "memory": bool(fault[0]),
        "wall_s": time.monotonic() - started,
        "cpu_s": cpu_s,
        "peak_kb": peak_kb,
    }


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


def _become_call(
    message: dict[str, Any], descriptors: Sequence[int], room: Room, fault: mmap.mmap
) -> NoReturn:
    """In the forked process: descriptors, limits, and then the program."""
    try:
        os.setsid()
        if room.call_ruleset >= 0:
            landlock_restrict(room.call_ruleset)
        if room.call_filter:
            install_seccomp(room.call_filter)
        _arrange(message["fds"], descriptors)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        set_limit(resource.RLIMIT_CPU, max(1, math.ceil(room.cpu_s)))
        if room.dies_with_parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 1)  # it may look at itself
        gc.enable()
        child.run(message, room, fault)
    except BaseException as error:
        os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    os._exit(child.NOT_STARTED)


def _arrange(places: Sequence[int], descriptors: Sequence[int]) -> None:
    """Put each descriptor at its place (0 to 4; 0 to 2 lead nowhere as it is), and close the rest."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 16) for descriptor in descriptors]
    for place, descriptor in zip(places, moved, strict=True):
        os.dup2(descriptor, place)
    for place in {child.RESULT, child.PAYLOAD}.difference(places):
        os.closerange(place, place + 1)
    os.closerange(child.PAYLOAD + 1, 1 << 30)


def limit_processes(room: Room) -> None:
    """The limits of each process from here on. Memory of all together is bounded by the monitor."""
    mib = 1 << 20
    set_limit(resource.RLIMIT_AS, (room.mem_mb + 512) * mib)  # what is mapped is more than what is used
    set_limit(resource.RLIMIT_FSIZE, room.disk_mb * mib)
    set_limit(resource.RLIMIT_NPROC, room.nproc)
    set_limit(resource.RLIMIT_NOFILE, 256)
    set_limit(resource.RLIMIT_CORE, 0)
    set_limit(resource.RLIMIT_MEMLOCK, 0)
    set_limit(resource.RLIMIT_MSGQUEUE, 0)
    set_limit(resource.RLIMIT_STACK, 8 * mib)
