"""Names of what a launcher leaves on the host: by them a later launcher tells what belongs to a dead one."""

from __future__ import annotations

import os


def own_name() -> str:
    """Names this process: no other one of this boot, in whichever container, has the same."""
    return f"{_namespace()}-{os.getpid()}-{_started(os.getpid())}"


def is_dead(name: str) -> bool:
    """Whether `name` is an `own_name` of a process that has ended; False where that cannot be told."""
    parts = name.split("-")
    if len(parts) != 3 or not all(map(str.isdecimal, parts)) or parts[0] != _namespace():
        return False
    try:
        return _started(int(parts[1])) != parts[2]
    except OSError:
        return True


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot: with its id it names one process of this boot."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def _namespace() -> str:
    """The namespace that process ids are of: containers may share a folder of temporary files."""
    return str(os.stat("/proc/self/ns/pid").st_ino)
