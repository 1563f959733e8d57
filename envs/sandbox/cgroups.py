"""Control groups (v2) of sandboxes, where the host's user has been given some: used, never required.

Limits of a process (rlimits) bound no sum, and the monitor looks every 50 ms. A cgroup bounds memory,
processes and CPU of all that runs in a sandbox at the moment that they are taken, so it holds what a bomb
does between two looks, and it ends a whole tree at once. The monitor keeps the exact bounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from envs.sandbox import owners
from envs.sandbox.delegation import Place, enable, words_of, write

MARGIN_MB = 128
"""Beside what a call may take and may write: the first process, the next call's, bubblewrap's interpreter,
and what the kernel holds for them. Within it the monitor says what was too much."""

ONE_CPU = "100000 100000"
PATIENCE_S = 0.2
"""For the kernel to let go of a cgroup whose processes have ended."""

_PREFIX = "whetstone-"


def oom_kills(folder: str) -> int:
    """Processes of a cgroup that the kernel ended since its own memory was full, not the host's."""
    try:
        words = words_of(folder, "memory.events")
    except FileNotFoundError:  # it has gone with its sandbox, whose end is told elsewhere
        return 0
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return counts["oom_kill"] if counts["oom"] else 0


class Group:
    """The cgroup of one sandbox."""

    def __init__(self, folder: str, files: Mapping[str, str]) -> None:
        self.folder = folder
        os.mkdir(folder)
        try:
            for name, text in files.items():
                if name != "memory.swap.max" or os.path.exists(f"{folder}/{name}"):  # a kernel without swap
                    write(folder, name, text)
            # Opened by the launcher, whose right to it counts, for a process that is about to lose its own.
            self._entry = os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.rmdir(folder)
            raise

    def enter(self) -> None:
        """Be in it from here on, with all that this process starts."""
        os.write(self._entry, b"0")
        self.close_entry()

    def close_entry(self) -> None:
        if self._entry >= 0:
            os.close(self._entry)
            self._entry = -1

    def kill(self) -> None:
        """End every process in it, on Linux 5.14 or newer; older kernels have no such file."""
        with suppress(FileNotFoundError):
            write(self.folder, "cgroup.kill", "1")

    def remove(self) -> None:
        self.close_entry()
        with suppress(OSError):  # it stays: the launcher's end, or the next one's start, takes it along
            _remove(self.folder)


class Groups:
    """The cgroup of one launcher, and one in it for each sandbox."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = f"{place.folder}/{_PREFIX}{owners.own_name()}"
        os.mkdir(self.folder)
        if problem := enable(self.folder, place.controllers):
            os.rmdir(self.folder)
            raise OSError(f"{self.folder}: {problem}")

    @property
    def counts_memory(self) -> bool:
        return "memory" in self.place.controllers

    def make(self, number: int, limits: Mapping[str, Any], *, num_wrappers: int = 0) -> Group:
        """A cgroup for sandbox `number`; `num_wrappers` processes of another program are in it too."""
        num_mb = limits["mem_mb"] + limits["disk_mb"] + MARGIN_MB  # files in memory are charged as well
        bounds = {
            "memory": {"memory.max": str(num_mb << 20), "memory.swap.max": "0"},
            "pids": {"pids.max": str(limits["procs"] + 1 + num_wrappers)},  # the first process is one more
            "cpu": {"cpu.max": ONE_CPU},
        }
        files: dict[str, str] = {}
        for name in self.place.controllers:
            files |= bounds.get(name, {})
        return Group(f"{self.folder}/{number}", files)

    def remove(self) -> None:
        _remove_tree(self.folder)


def start(place: Place | None, reason: str) -> tuple[Groups | None, str]:
    """The launcher's cgroup, once a process was seen to live and end in one like a sandbox's; or why not."""
    if place is None:
        return None, reason
    groups = None
    try:
        groups = Groups(place)
        _try(groups)
    except OSError as error:
        if groups is not None:
            groups.remove()
        return None, str(error)
    return groups, ""


def _try(groups: Groups) -> None:
    group = groups.make(0, {"mem_mb": 64, "disk_mb": 64, "procs": 2})
    try:
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(OSError):
                group.enter()
                code = 0
            os._exit(code)
        if os.waitpid(pid, 0)[1]:
            raise OSError(f"no process can enter {group.folder}")
    finally:
        group.remove()


def sweep(place: Place | None) -> None:
    """Remove the cgroups of launchers that were themselves killed, with every process left in them."""
    if place is None:
        return
    for name in os.listdir(place.folder):
        folder = f"{place.folder}/{name}"
        with suppress(OSError):
            is_ours = name.startswith(_PREFIX) and os.lstat(folder).st_uid == os.geteuid()
            if is_ours and owners.is_dead(name.removeprefix(_PREFIX)):
                _remove_tree(folder)


def _remove_tree(folder: str) -> None:
    """Remove a launcher's cgroup and those in it; what cannot be removed yet stays for the next sweep."""
    with suppress(OSError):
        with suppress(OSError):
            write(folder, "cgroup.kill", "1")
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove(entry.path)
        _remove(folder)


def _remove(folder: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            os.rmdir(folder)
            return
        except OSError:
            if time.monotonic() > ends:
                raise
        time.sleep(0.002)
