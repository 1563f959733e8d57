"""The seccomp filter: which system calls a sandboxed program has, as a classic BPF program.

An argument is compared by its low 32 bits where the kernel reads no more of it (CVE-2019-10063: TIOCSTI with
bits above them set went past filters that compared all 64).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from envs.sandbox.denied import ATTRIBUTES, DENIED, MODES, NAMES, SIGNALS, TIMES, TRUNCATE
from envs.sandbox.syscalls import CLONE_NEW_ANY

_LOAD, _JEQ, _JGE, _JGT, _JSET, _RET = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_LAST = 462  # mseal, Linux 6.10: what is newer does not exist for the program

_CLONE3 = 435
_CLONE, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (41, 198), (53, 199), (16, 29)
_FCNTL, _FLOCK, _PRLIMIT, _PERSONALITY = (72, 25), (73, 32), (302, 261), (135, 92)
_SETPRIORITY, _IOPRIO_SET, _PRCTL, _MMAP = (141, 140), (251, 30), (157, 167), (9, 222)
_OF_A_PROCESS = (
    (203, 122),
    (144, 119),
    (142, 118),
    (314, 274),
)  # sched_setaffinity, _setscheduler, _setparam, _setattr
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = (
    8,
    10,
    15,
    0x8901,
    0x8902,
)  # who gets a file's signal
_F_GETLK, _F_OFD_GETLK = 5, 36
_PR_SET_DUMPABLE, _PR_SCHED_CORE, _MAP_HUGETLB = 4, 62, 0x40000
_STREAM, _SEQPACKET, _NONBLOCK, _CLOEXEC = 1, 5, 0x800, 0x80000
_READ_PERSONALITY = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]


def _return(value: int) -> Instruction:
    return (_RET, 0, 0, value)


def _refuse(number: int = errno.EPERM) -> Instruction:
    return _return(_ERRNO | number)


def _load_argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGS + 8 * index)


def _only(call: int, body: list[Instruction]) -> list[Instruction]:
    """`body`, which ends in a return, for one system call."""
    return [(_JEQ, 0, len(body), call), *body]


def _one_of(index: int, allowed: list[int], refusal: int) -> list[Instruction]:
    """Argument `index` must be one of `allowed`."""
    checks = [(_JEQ, len(allowed) - place, 0, value) for place, value in enumerate(allowed)]
    return [_load_argument(index), *checks, _refuse(refusal), _return(_ALLOW)]


def _both(*wanted: tuple[int, int]) -> list[Instruction]:
    """Each of these arguments must have its value."""
    body: list[Instruction] = [_return(_ALLOW)]
    for index, value in reversed(wanted):
        body = [_load_argument(index), (_JEQ, 1, 0, value), _refuse(), *body]
    return body


def _none_of(index: int, refused: list[int]) -> list[Instruction]:
    """Argument `index` must be none of `refused`."""
    checks = [(_JEQ, len(refused) - place, 0, value) for place, value in enumerate(refused)]
    return [_load_argument(index), *checks, _return(_ALLOW), _refuse()]


def _instructions(
    machine: str, *, sockets: bool, signals: bool, locks: bool, times: bool, modes: bool, truncate: bool
) -> Iterator[Instruction]:
    column = 1 if machine == "aarch64" else 0
    yield (_LOAD, 0, 0, _ARCH)
    yield (_JEQ, 1, 0, _ARCHES[machine])  # the 32-bit calls of the same kernel have other numbers
    yield _return(_KILL_PROCESS)
    yield (_LOAD, 0, 0, _NR)
    yield (_JGE, 0, 1, _X32)
    yield _refuse(errno.ENOSYS)
    yield (_JGT, 0, 1, _LAST)
    yield _refuse(errno.ENOSYS)
    yield from _only(_CLONE3, [_refuse(errno.ENOSYS)])  # its flags are in memory; libc then uses clone
    denied = dict(DENIED)
    if not signals:
        denied |= SIGNALS
    if not locks:
        denied |= {"flock": _FLOCK, "inotify_add_watch": (254, 27)}
    if not sockets:
        denied |= NAMES
    if not times:
        denied |= ATTRIBUTES
    if not truncate:
        denied |= TRUNCATE
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            yield from _only(number, [_refuse()])
    ignored = (TIMES if not times else {}) | (MODES if not modes else {})
    for numbers in ignored.values():
        number = numbers[column]
        if number is not None:
            yield from _only(number, [_refuse(0)])  # not done, and no error: copying a file sets both
    namespaces = [_load_argument(0), (_JSET, 0, 1, CLONE_NEW_ANY), _refuse(), _return(_ALLOW)]
    yield from _only(_CLONE[column], namespaces)
    families = [_AF_UNIX, _AF_INET, _AF_INET6] if sockets else []
    yield from _only(_SOCKET[column], _one_of(0, families, errno.EAFNOSUPPORT if sockets else errno.EPERM))
    if not sockets:  # a datagram goes to any name, from one of a pair too
        kinds = [
            kind | flags
            for kind in (_STREAM, _SEQPACKET)
            for flags in (0, _NONBLOCK, _CLOEXEC, _NONBLOCK | _CLOEXEC)
        ]
        checks: list[Instruction] = [(_JEQ, len(kinds) - place, 0, kind) for place, kind in enumerate(kinds)]
        family: list[Instruction] = [_load_argument(0), (_JEQ, 1, 0, _AF_UNIX), _refuse(errno.EAFNOSUPPORT)]
        yield from _only(
            _SOCKETPAIR[column], [*family, _load_argument(1), *checks, _refuse(), _return(_ALLOW)]
        )
    else:
        yield from _only(_SOCKETPAIR[column], _one_of(0, [_AF_UNIX], errno.EAFNOSUPPORT))
    yield from _only(_IOCTL[column], _none_of(1, [_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP]))
    shown = [] if locks else [_F_GETLK, _F_OFD_GETLK]  # a read lock on a shared file, seen by another sandbox
    signalled = [_F_SETOWN, _F_SETSIG, _F_SETOWN_EX]
    yield from _only(_FCNTL[column], _none_of(1, [_F_SETLEASE, _F_NOTIFY, *signalled, *shown]))
    # The first process, and the host's where it shares user or ids, must not be made slow.
    for number in _OF_A_PROCESS:
        yield from _only(number[column], _both((0, 0)))
    yield from _only(_SETPRIORITY[column], _both((0, 0), (1, 0)))
    yield from _only(_IOPRIO_SET[column], _both((0, 1), (1, 0)))
    hidden = [_load_argument(1), (_JEQ, 0, 1, 0), _refuse(), _return(_ALLOW)]  # from the monitor
    refused = [(_JEQ, 0, 1, _PR_SCHED_CORE), _refuse()]
    yield from _only(
        _PRCTL[column],
        [_load_argument(0), *refused, (_JEQ, 1, 0, _PR_SET_DUMPABLE), _return(_ALLOW), *hidden],
    )
    huge = [_load_argument(3), (_JSET, 0, 1, _MAP_HUGETLB), _refuse(errno.ENOMEM), _return(_ALLOW)]
    yield from _only(_MMAP[column], huge)
    yield from _only(_PRLIMIT[column], _one_of(0, [0], errno.EPERM))  # its own limits, nobody else's
    yield from _only(_PERSONALITY[column], _one_of(0, [0, _READ_PERSONALITY], errno.EPERM))
    yield _return(_ALLOW)


def seccomp_program(
    machine: str,
    *,
    sockets: bool,
    signals: bool = True,
    locks: bool = True,
    times: bool = True,
    modes: bool = True,
    truncate: bool = True,
) -> bytes:
    """The filter's bytes for `machine`, x86_64 or aarch64.

    `sockets`: whether unix and internet sockets may be made (where a network namespace has nothing in it);
    a pair of connected ones always may. `signals`: whether processes may be signalled at all (where none but
    the program's own can be reached). `locks`: whether flock may be used (where no file is shared).
    `times`, `modes`: whether files' times and attributes, modes and owners may be changed, and `truncate` by
    its path (where no file of the host can be named): otherwise times and modes stay, and nothing is said.
    """
    steps = _instructions(
        machine, sockets=sockets, signals=signals, locks=locks, times=times, modes=modes, truncate=truncate
    )
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
