"""The process that makes sandboxes: exec'ed fresh, with an empty environment, one thread, nobody's heap.

It is the warm interpreter that every sandbox is forked from, the monitor of their memory, and who removes
what they leave. It ends when the host's socket does, however the host ended, and takes every sandbox with it.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from envs.sandbox import boxes, cgroups, delegation, usage
from envs.sandbox.messages import receive
from envs.sandbox.syscalls import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl
from envs.sandbox.warm import warm_up

LONGEST_POLL_S = 0.25
"""The same where looking takes long: a bomb that makes it slow must not earn itself time."""

POLL_S = 0.05
"""How often memory, processes and files of running calls are looked at."""


@dataclass(kw_only=True)
class Box:
    """One sandbox as its launcher sees it."""

    number: int
    pid: int
    pidfd: int
    host: socket.socket  # the end that its first process answers on: for what only the launcher knows
    request: dict[str, Any]
    hold: boxes.Hold
    seen: tuple[int, int] = (0, 0)  # the one process of the last look, and the CPU time that it had used

    def tell(self, **event: Any) -> None:
        with suppress(OSError):  # nobody listens any more
            self.host.send(json.dumps(event).encode(), socket.MSG_DONTWAIT)


class Launcher:
    """Serves one host process."""

    def __init__(
        self, host: socket.socket, setup: dict[str, Any], groups: cgroups.Groups | None = None
    ) -> None:
        self.host = host
        self.setup = setup
        self.groups = groups
        self.boxes: dict[int, Box] = {}
        self.poll = select.poll()
        self.poll.register(host, select.POLLIN)

    def serve(self) -> None:
        """Until the host hangs up; then nothing of any sandbox is left."""
        try:
            next_look = time.monotonic()
            while True:
                wait_s = max(0.0, next_look - time.monotonic()) if self.boxes else 60.0
                ready = {descriptor for descriptor, _ in self.poll.poll(wait_s * 1000)}
                if self.host.fileno() in ready and not self._obey():
                    return
                for box in [box for box in self.boxes.values() if box.pidfd in ready]:
                    self._bury(box)
                started = time.monotonic()
                if started >= next_look:
                    for box in self.boxes.values():
                        self._look_at(box)
                    # Where looking takes long, looking is not all that is done.
                    now = time.monotonic()
                    next_look = now + min(max(POLL_S, 3 * (now - started)), LONGEST_POLL_S)
        finally:
            for box in list(self.boxes.values()):
                self._end(box)
                self._bury(box)
            if self.groups is not None:
                self.groups.remove()

    def _obey(self) -> bool:
        """One request of the host; False when it has hung up."""
        request, descriptors = receive(self.host)
        if request is None:
            return False
        if request["op"] == "open":
            self._open(request, descriptors)
        elif box := self.boxes.get(request["box"]):
            self._end(box)
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
        return True

    def _open(self, request: dict[str, Any], descriptors: list[int]) -> None:
        host = socket.socket(fileno=descriptors.pop())
        hold = boxes.Hold()
        try:
            pid = boxes.start(self.setup, request, host, hold, self.groups)
        except (OSError, ValueError) as error:
            hold.release()
            with suppress(OSError):
                host.send(json.dumps({"op": "failed", "error": str(error)}).encode())
            host.close()
            return
        pidfd = os.pidfd_open(pid)
        box = Box(number=request["box"], pid=pid, pidfd=pidfd, host=host, request=request, hold=hold)
        self.boxes[box.number] = box
        self.poll.register(pidfd, select.POLLIN)

    def _end(self, box: Box) -> None:
        """Kill a sandbox: its first process and, where that does not take the others along, each of them."""
        if box.hold.group is not None:
            box.hold.group.kill()
        if box.hold.shares_pids:
            usage.kill_tree(box.pid, uid=box.hold.uid)  # an orphan would come to this process, and live
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(box.pidfd, signal.SIGKILL)

    def _bury(self, box: Box) -> None:
        """The first process has ended, or will: collect it, and remove what it leaves."""
        del self.boxes[box.number]
        self.poll.unregister(box.pidfd)
        _, status = os.waitpid(box.pid, 0)
        os.close(box.pidfd)
        if box.hold.shares_pids or box.hold.is_wrapped:
            self._end_strays()
        group = box.hold.group
        num_oom_kills = cgroups.oom_kills(group.folder) if group is not None else 0
        box.hold.release()
        box.tell(op="dead", status=status, oom_kills=num_oom_kills)
        box.host.close()

    def _end_strays(self) -> None:
        """Processes of an ended sandbox come to this one, their nearest living ancestor that collects."""
        known = {box.pid for box in self.boxes.values()}
        for _ in range(usage.ROUNDS):
            strays = [pid for pid in usage.children(os.getpid()) if pid not in known]
            if not strays:
                return
            for pid in strays:
                usage.kill_tree(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _look_at(self, box: Box) -> None:
        """End the call of a sandbox that takes more than it may."""
        first = box.pid
        if box.hold.is_wrapped:
            first = next(usage.descendants(first), first)
        running = list(usage.descendants(first))
        if not running:
            return
        seen = (running[0], usage.cpu_ticks(running[0]))
        if len(running) == 1 and seen == box.seen:
            return  # one process that has done nothing since: most wait for their next call
        box.seen = seen
        limits = box.request["limits"]
        if excess := usage.excess(first, limits, box.hold.folder, counts_processes=box.hold.shares_pids):
            # Told before it is done, so that the host knows why; the first process ends what these started.
            box.tell(op="event", what=excess)
            for process in running:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _outlive(launcher: int, temp: str, place: delegation.Place | None) -> NoReturn:
    """Wait for the launcher's end, and end what it could not where it was killed itself."""
    while os.waitpid(-1, 0)[0] != launcher:
        pass
    with suppress(ChildProcessError):
        while True:  # what it leaves comes to this process
            usage.kill_tree(os.getpid())
            os.waitpid(-1, 0)
    boxes.sweep(temp)
    cgroups.sweep(place)
    os._exit(0)


def main(host: socket.socket, setup: dict[str, Any]) -> None:
    """Serve `host`; what `-c` of a fresh interpreter calls."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the host has gone, and cleans up first
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    place, reason = delegation.find(setup.get("controllers") or delegation.CONTROLLERS)
    shares_pids = setup["backend"] in ("landlock", "rlimits")  # no namespace ends with its first process
    if shares_pids and (launcher := os.fork()):
        host.close()
        _outlive(launcher, setup["temp"], place)
    warm_up()
    gc.collect()
    gc.freeze()  # what is shared stays shared: a collection would write to it
    boxes.sweep(setup["temp"])
    cgroups.sweep(place)
    groups, reason = cgroups.start(place, reason)
    cgroup = {"reason": reason}
    if groups is not None:
        cgroup |= {"folder": groups.folder, "controllers": groups.place.controllers}
    host.send(json.dumps({"op": "ready", "pid": os.getpid(), "cgroup": cgroup}).encode())
    Launcher(host, setup, groups).serve()
