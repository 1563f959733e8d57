"""The first process of a sandbox: it starts each call, ends all that is left of it, and reads nothing of it.

It is restricted as its calls are. Messages are JSON over a seqpacket socket, descriptors beside them; only
the host speaks to it. It outlives a call, which it ends at its deadline.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from envs.sandbox import child
from envs.sandbox.messages import receive
from envs.sandbox.room import Room
from envs.sandbox.session import await_answer
from envs.sandbox.syscalls import set_limit
from envs.sandbox.waiting import Spare, forget, prepare

IDLE_S = 1.0
"""Without a call for so long, the process that waits for the next one is let go."""

ATTEMPTS = 3
"""A process that waits for its call may be gone when that comes: another one then takes it."""


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
    spare: Spare | None = None  # waits for the next call
    session: Spare | None = None  # waits for the next call of a session
    while True:
        spare = spare or prepare(host, room, fault)
        if not select.select([host], [], [], IDLE_S)[0]:  # an idle process holds memory
            spare = forget(spare)
            select.select([host], [], [])
            spare = prepare(host, room, fault)
        message, descriptors = receive(host)
        if message is None:
            return
        if message["op"] == "run":
            fault[0] = 0
            if message["kind"] == "session":
                was_spare = session is None
                session, done = _run_in_session(host, message, descriptors, room, fault, session or spare)
                if was_spare or session is None:  # used, or ended with everything else
                    spare = forget(None if was_spare else spare)
            else:
                session = forget(session)
                done = _run(host, message, descriptors, room, fault, spare)
                spare = None
            if done is None:
                return
            host.send(json.dumps(done).encode())
        for descriptor in descriptors:
            os.close(descriptor)


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


def _run_in_session(
    host: socket.socket,
    message: dict[str, Any],
    descriptors: list[int],
    room: Room,
    fault: mmap.mmap,
    session: Spare,
) -> tuple[Spare | None, dict[str, Any] | None]:
    """One call of a session: the session, unless it has ended, and what the call came to."""
    started = time.monotonic()
    ended = os.pidfd_open(session.pid)
    try:
        session.take(message, descriptors)
        answer = await_answer(host, session.link, ended, started + message["wall_s"])
    finally:
        os.close(ended)
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
    done = {
        "op": "done",
        "status": answer.get("exit", 0) << 8,
        "begun": True,
        "timeout": "late" in answer,
        "memory": bool(fault[0]),
        "wall_s": time.monotonic() - started,
        "cpu_s": answer.get("cpu_s", 0.0),
        "peak_kb": 0,
    }
    if "exit" in answer:
        _reap_strays(session.pid)
        return session, done
    room.kill_all()
    status, cpu_s, peak_kb = _reap(session.pid, room.kill_all)
    session.forget()
    if "gone" in answer:
        return None, None
    return None, {**done, "status": status, "cpu_s": cpu_s, "peak_kb": peak_kb}


def _await_end(host: socket.socket, pid: int, deadline: float) -> tuple[bool, bool, bool]:
    """Wait for a call's end: whether it is late instead, was told to end, the host is gone.

    A word of the host in mid-call is the word to end it, or the host's own end.
    """
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:  # ended before its call came, and collected
        return False, False, False
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
