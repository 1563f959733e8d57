"""Memory and files that belong to a sandbox's processes though no page table and no name shows them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SOCKET_BYTES = 416 << 10
"""What two ends of a socket may hold, as a kernel allows it unasked (net.core.wmem_max, doubled)."""


def mapped_bytes(pid: int) -> int:
    """All that a process has mapped, used or not."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[0]) * _PAGE
    return 0


def shared_bytes(processes: Iterable[int]) -> int:
    """Shared memory without a file: it stays when every process has given back its pages of it."""
    sizes: dict[str, int] = {}
    for pid in processes:
        for _, mode, inode, size, name in _mappings(pid):
            if mode[3] == "s" and name.startswith("/dev/zero"):
                sizes[inode] = max(size, sizes.get(inode, 0))
    return sum(sizes.values())


def socket_bytes(processes: Iterable[int], enough: int) -> int:
    """What the sockets of the processes may hold in the kernel; not counted on once that is `enough`."""
    total = 0
    for pid in processes:
        if total + _count_descriptors(pid) * _SOCKET_BYTES <= enough:
            continue  # not even if all of them were sockets
        for facts in _open_files(pid):
            total += _SOCKET_BYTES * stat.S_ISSOCK(facts.st_mode)
            if total > enough:
                return total
    return total


def nameless_bytes(processes: Iterable[int]) -> int:
    """Files on disk that were removed, and that a descriptor or a mapping keeps."""
    sizes: dict[tuple[int, int], int] = {}
    for pid in processes:
        for facts in _open_files(pid):
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0:
                sizes[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
        for device, _, inode, size, name in _mappings(pid):
            if name.endswith(" (deleted)") and not name.startswith(("/dev/zero", "/memfd:", "/SYSV")):
                major, _, minor = device.partition(":")
                key = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
                sizes[key] = max(size, sizes.get(key, 0))
    return sum(sizes.values())


def _count_descriptors(pid: int) -> int:
    with suppress(OSError):
        size = os.stat(f"/proc/{pid}/fd").st_size  # how many, since Linux 6.2
        return size or len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _open_files(pid: int) -> Iterator[os.stat_result]:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.stat(f"/proc/{pid}/fd/{descriptor}")


def _mappings(pid: int) -> Iterator[tuple[str, str, str, int, str]]:
    """(device, mode, inode, bytes, name) of each mapping that has a file."""
    with suppress(OSError), open(f"/proc/{pid}/maps", errors="surrogateescape") as file:
        for line in file:
            place, mode, _, device, inode, *name = line.split(maxsplit=5)
            if name and inode != "0":
                start, _, end = place.partition("-")
                yield device, mode, inode, int(end, 16) - int(start, 16), name[0].rstrip("\n")
