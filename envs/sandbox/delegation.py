"""The cgroup (v2) that was delegated to this process's user, if any: where children with limits can be made.

Only a cgroup that holds no process itself can have such children, and nobody's processes are moved to make
one so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

CONTROLLERS = ("memory", "pids", "cpu")
"""What is used; with neither memory nor pids a cgroup is not worth making."""


@dataclass(frozen=True, slots=True)
class Place:
    """A cgroup in which this user may make others, and the controllers that these have."""

    folder: str
    controllers: tuple[str, ...]


def find(wanted: Sequence[str] = CONTROLLERS, proc: str = "/proc/self") -> tuple[Place | None, str]:
    """The nearest delegated cgroup, from this process's own upwards; or None, and why there is none."""
    try:
        here, top = _own(proc)
    except (OSError, ValueError) as error:
        return None, str(error)
    problems = []
    while True:
        found = _usable(here, wanted)
        if isinstance(found, tuple):
            return Place(here, found), ""
        problems.append(f"{here}: {found}")
        if here == top:
            return None, "; ".join(problems)
        here = os.path.dirname(here)


def _own(proc: str) -> tuple[str, str]:
    """The folder of the own cgroup, and the outermost one that is mounted."""
    with open(f"{proc}/cgroup") as file:
        path = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")
    with open(f"{proc}/mountinfo") as file:
        mounts = [line.split() for line in file if " - cgroup2 " in line]
    if not path or not mounts:
        raise ValueError("no cgroup v2 is mounted")
    for _, _, _, root, top, *_ in mounts if not path.startswith("/..") else ():  # above the own namespace
        root, top = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in (root, top))
        below = os.path.relpath(path, root)
        if below.split("/")[0] != "..":
            return os.path.normpath(f"{top}/{below}"), top
    raise ValueError(f"the own cgroup {path} is not below one that is mounted")


def _usable(folder: str, wanted: Sequence[str]) -> tuple[str, ...] | str:
    """The controllers that cgroups made in `folder` have; or why none can be made."""
    try:
        there = [name for name in wanted if name in words_of(folder, "cgroup.controllers")]
        if not set(there) - {"cpu"}:
            return "has none of the controllers memory and pids"
        for path in (folder, f"{folder}/cgroup.procs", f"{folder}/cgroup.subtree_control"):
            if not os.access(path, os.W_OK, effective_ids=True):
                return "may not be written"
        if words_of(folder, "cgroup.procs") and os.path.exists(f"{folder}/cgroup.type"):  # all but the root
            return "holds processes itself"  # some controllers it could give all the same, to threads alone
        problem = enable(folder, there)
        enabled = tuple(name for name in there if name in words_of(folder, "cgroup.subtree_control"))
    except OSError as error:
        return str(error)
    return enabled if set(enabled) - {"cpu"} else problem


def enable(folder: str, names: Sequence[str]) -> str:
    """Give the children of `folder` these controllers, as many as can be; what hindered one of them."""
    problem = ""
    for name in names:
        if name not in words_of(folder, "cgroup.subtree_control"):
            try:
                write(folder, "cgroup.subtree_control", f"+{name}")
            except OSError as error:
                problem = f"its children cannot have {name} ({error.strerror})"
    return problem


def words_of(folder: str, name: str) -> list[str]:
    with open(f"{folder}/{name}") as file:
        return file.read().split()


def write(folder: str, name: str, text: str) -> None:
    descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
