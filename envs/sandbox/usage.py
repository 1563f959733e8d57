"""What a sandbox's processes use, read from the host's /proc, and their end where no namespace brings it."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SLACK = 1 << 20  # one file may be as large as all may be; then the next call must be able to remove it
_FEW, _MAX_DESCRIPTORS = 4, 1024
"""A pipe or a socket holds memory that no process is charged for, about 200 KiB: beyond so many descriptors
of more than a few processes together that counts as too much memory."""

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


def descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`, parents first."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def resident_bytes(pid: int) -> int:
    """Memory of one process, pages that it shares with others included."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def proportional_bytes(pid: int) -> int:
    """Memory of one process, a page shared by n counted 1/n; resident where that cannot be read."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def excess(pid: int, limits: Mapping[str, Any], folder: str, *, counts_processes: bool) -> str:
    """Which limit the call of the sandbox of `pid` is over: oom, disk_limit, procs, or "" for none."""
    processes = list(descendants(pid))
    allowed = limits["mem_mb"] << 20
    # Cheap first: pages shared with the first process count in each, so this is never too small.
    if sum(map(resident_bytes, processes)) > allowed and sum(map(proportional_bytes, processes)) > allowed:
        return "oom"
    if len(processes) > _FEW and sum(map(_num_descriptors, processes)) > _MAX_DESCRIPTORS:
        return "oom"
    if counts_processes and len(processes) > limits["procs"]:
        return "procs"
    if folder and _is_too_full(folder, (limits["disk_mb"] << 20) + _SLACK, limits["files"]):
        return "disk_limit"
    return ""


def _num_descriptors(pid: int) -> int:
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))  # 0 before Linux 6.2
    return 0


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
        except (FileNotFoundError, NotADirectoryError, PermissionError):
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
    number = 0
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
                        os.rename(entry, f".moved-{number}", src_dir_fd=inner, dst_dir_fd=top)
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
