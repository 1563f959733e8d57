"""The `landlock` backend's walls, for a machine without namespaces: files by Landlock, no sockets at all.

Process ids are shared with the host: calls cannot signal anything outside from ABI 6 on, and cannot signal at
all before it. Nothing bounds files and memory but the monitor's polling.
"""

from __future__ import annotations

import os

from envs.sandbox import syscalls
from envs.sandbox.places import SYSTEM, is_below

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
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
TRUNCATE_ABI = 3
"""From this ABI on Landlock knows of emptying a file."""

SIGNALS_ABI = 6
"""From this ABI on the processes of a sandbox cannot signal any other."""


def _handled(abi: int) -> int:
    return sum(rights for since, rights in _ALL_SINCE.items() if since <= abi)


def make_rulesets(
    abi: int, readable: tuple[str, ...], hidden: tuple[str, ...], writable: str
) -> tuple[int, int]:
    """Descriptors of two rulesets: for the whole sandbox, and once more for each of its calls."""
    handled = _handled(abi)
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if abi >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if abi >= SIGNALS_ABI else 0
    whole, calls = (syscalls.landlock_ruleset(handled, net, scoped, abi) for _ in range(2))
    for ruleset in (whole, calls):
        for path in (*SYSTEM, *readable):
            _allow_reading(ruleset, path, hidden)
        for path in _DEVICES:
            syscalls.landlock_allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _IOCTL) & handled)
        syscalls.landlock_allow(ruleset, writable, handled)
    if abi < SIGNALS_ABI:  # the first process must find what to end
        syscalls.landlock_allow(whole, "/proc", _READ_FILE | _READ_DIR)
    return whole, calls


def _allow_reading(ruleset: int, path: str, hidden: tuple[str, ...]) -> None:
    """Allow `path` to be read, but what is `hidden` in it: of that the names alone.

    A rule holds for all that is below it, so a folder with something hidden in it gets one for each entry.
    """
    if not os.path.exists(path) or path in hidden:
        return
    if not os.path.isdir(path):
        syscalls.landlock_allow(ruleset, path, _READ_ONLY & _FILE_RIGHTS)
    elif not any(is_below(place, path) for place in hidden):
        syscalls.landlock_allow(ruleset, path, _READ_ONLY)
    else:
        syscalls.landlock_allow(ruleset, path, _READ_DIR)
        for name in os.listdir(path):
            if not os.path.islink(f"{path}/{name}"):  # a rule for a link is one for what it leads to
                _allow_reading(ruleset, f"{path}/{name}", hidden)
