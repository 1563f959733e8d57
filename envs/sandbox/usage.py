"""What a sandbox's processes use, read from the host's /proc, and their end where no namespace brings it."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from envs.sandbox import held

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SLACK = 1 << 20  # one file may be as large as all may be; then the next call must be able to remove it

ROUNDS = 200
"""How often a tree is killed again while processes in it make new ones."""


def children(pid: int) -> list[int]:
    """The processes that any thread of `pid` started, or that came to it when their parent ended."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found.extend(map(int, file.read().split()))
    return found


def cpu_ticks(pid: int) -> int:
    """CPU time of a process and of those that it has waited for, in clock ticks; 0 of one that is gone."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    return 0


def descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`, parents first."""
    pending = children(pid)
    while pending:
        child = pending.pop()
        yield child
        pending += children(child)


def resident_bytes(pid: int) -> int:
    """Memory of one process, pages that it shares with others included."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def proportional_bytes(pid: int) -> int:
    """Memory of one process, a page shared by n counted 1/n; resident where that cannot be read.

    Without shared memory, which is counted by itself (held.py).
    """
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        words = {
            name: int(rest.split()[0])
            for name, _, rest in (line.partition(":") for line in file)
            if name[:3] == "Pss"
        }
        if "Pss" in words:
            return (words["Pss"] - words.get("Pss_Shmem", 0)) * 1024
    return resident_bytes(pid)


def _count_threads(pid: int) -> int:
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    return 0


def _takes_too_much(processes: list[int], allowed: int) -> bool:
    """Whether they hold more memory together. Cheap first: no more is shared than is mapped."""
    shared = held.shared_bytes(processes) if sum(map(held.mapped_bytes, processes)) > allowed else 0
    if sum(map(resident_bytes, processes)) + shared > allowed:  # pages that all share count in each
        used = sum(map(proportional_bytes, processes))
        if used + shared > allowed:
            return True
    return held.socket_bytes(processes, allowed) > allowed


def excess(pid: int, limits: Mapping[str, Any], folder: str, *, counts_processes: bool) -> str:
    """Which limit the call of the sandbox of `pid` is over: oom, disk_limit, procs, or "" for none."""
    processes, num_threads = [], 0
    for process in descendants(pid):
        processes.append(process)
        num_threads += _count_threads(process) if counts_processes else 0
        if num_threads > limits["procs"]:  # enough seen: a fork bomb must not keep the monitor busy
            return "procs"
    allowed = limits["mem_mb"] << 20
    if _takes_too_much(processes, allowed):
        return "oom"
    if folder:
        room = (limits["disk_mb"] << 20) + _SLACK - held.nameless_bytes(processes)
        if room < 0 or _is_too_full(folder, room, limits["files"]):
            return "disk_limit"
    return ""


def num_threads_of(uid: int) -> int:
    """Threads that the kernel counts for a user now."""
    total = 0
    for pid in _processes_of(uid):
        with suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as file:
            total += int(file.read().rpartition(")")[2].split()[17])
    return total


def _is_too_full(folder: str, max_bytes: int, max_files: int) -> bool:
    """Whether what is below `folder` is more than it may be. A path too long to be opened counts as such."""
    num_bytes = num_files = 0
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # it goes while it is looked at
                        num_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                        num_files += 1
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                    if num_bytes > max_bytes or num_files > max_files:
                        return True
        except PermissionError:
            return True  # a folder that its own user must not list hides what is in it
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
    return False


def remove_folder(folder: str) -> None:
    """Remove a tree that a program made, when nothing runs in it: any depth, any permission, no link.

    A folder found inside is first moved to the top, so neither recursion nor a path grows with its depth.
    """
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    number, mark = 0, os.urandom(8).hex()  # no name that the program could have taken
    try:
        os.fchmod(top, 0o700)
        while names := os.listdir(top):
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
                try:
                    for entry in os.listdir(inner):
                        number += 1
                        if not stat.S_ISDIR(os.stat(entry, dir_fd=inner, follow_symlinks=False).st_mode):
                            os.unlink(entry, dir_fd=inner)
                            continue
                        os.chmod(entry, 0o700, dir_fd=inner)  # to move a folder is to write its ".."
                        os.rename(entry, f"{mark}-{number}", src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(folder)


def kill_tree(pid: int, *, uid: int = -1) -> None:
    """End everything below `pid`, again until nothing new appears; with `uid` all of that user's too."""
    for _ in range(ROUNDS):
        processes = [*descendants(pid), *(_processes_of(uid) if uid >= 0 else ())]
        living = [process for process in processes if process != pid and not _is_dead(process)]
        if not living:
            return
        for process in living:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _processes_of(uid: int) -> Iterator[int]:
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                yield int(name)
