"""The `landlock` backend's walls, for a machine without namespaces: files by Landlock, no sockets at all.

Process ids are shared with the host: calls cannot signal anything outside from ABI 6 on, and cannot signal at
all before it. Nothing bounds files and memory but the monitor's polling.
"""

from __future__ import annotations

import os

from envs.sandbox import syscalls

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_SINCE = {
    1: (1 << 13) - 1,
    2: 1 << 13,
    3: 1 << 14,
    5: 1 << 15,
}  # access rights by ABI: refer, truncate, ioctl
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_READ_ONLY = _EXECUTE | _READ_FILE | _READ_DIR
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
TRUNCATE_ABI = 3
"""From this ABI on Landlock knows of emptying a file."""

SIGNALS_ABI = 6
"""From this ABI on the processes of a sandbox cannot signal any other."""


def _handled(abi: int) -> int:
    return sum(rights for since, rights in _ALL_SINCE.items() if since <= abi)


def make_rulesets(abi: int, readable: tuple[str, ...], writable: str) -> tuple[int, int]:
    """Descriptors of two rulesets: for the whole sandbox, and once more for each of its calls."""
    handled = _handled(abi)
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if abi >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if abi >= SIGNALS_ABI else 0
    whole, calls = (syscalls.landlock_ruleset(handled, net, scoped, abi) for _ in range(2))
    for ruleset in (whole, calls):
        for path in (*_SYSTEM, *readable):
            if os.path.exists(path):
                rights = _READ_ONLY if os.path.isdir(path) else _READ_ONLY & _FILE_RIGHTS
                syscalls.landlock_allow(ruleset, path, rights)
        for path in _DEVICES:
            syscalls.landlock_allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _IOCTL) & handled)
        syscalls.landlock_allow(ruleset, writable, handled)
    if abi < SIGNALS_ABI:  # the first process must find what to end
        syscalls.landlock_allow(whole, "/proc", _READ_FILE | _READ_DIR)
    return whole, calls
