"""The seccomp filter: which system calls a sandboxed program has, as a classic BPF program.

An argument is compared by its low 32 bits where the kernel reads no more of it (CVE-2019-10063: TIOCSTI with
bits above them set went past filters that compared all 64).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from envs.sandbox import syscall_numbers as numbers
from envs.sandbox.syscalls import CLONE_NEW_ANY

_LOAD, _JEQ, _JGE, _JGT, _JSET, _RET = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_READ_PERSONALITY = 0xFFFFFFFF
_IOPRIO_PROCESS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What else a filter lets through: each where something else makes it harmless.

    `sockets`: unix and internet sockets, where a network namespace has nothing in it; a connected pair may
    always be made. `signals`: any, where none but the program's own processes can be reached. `locks`: flock,
    where no file is shared. `metadata`: changes of modes, owners and times, where no file of the host is the
    program's; else they succeed without effect, since copying a file includes them. `notices`: inotify, where
    no file is shared. `truncation`: of files by name, where Landlock knows of it.
    """

    sockets: bool = True
    signals: bool = True
    locks: bool = True
    metadata: bool = True
    notices: bool = True
    truncation: bool = True


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


def _none_of(index: int, refused: list[int]) -> list[Instruction]:
    """Argument `index` must be none of `refused`."""
    checks = [(_JEQ, len(refused) - place, 0, value) for place, value in enumerate(refused)]
    return [_load_argument(index), *checks, _return(_ALLOW), _refuse()]


def _exactly(*arguments: tuple[int, int]) -> list[Instruction]:
    """Each (index, value) must be so."""
    body: list[Instruction] = []
    for place, (index, value) in enumerate(arguments):
        left = 2 * (len(arguments) - 1 - place)
        body += [_load_argument(index), (_JEQ, 0, left + 1, value)]
    return [*body, _return(_ALLOW), _refuse()]


def _no_reader_truncates(index: int) -> list[Instruction]:
    """Flags at argument `index` must not empty a file that is opened to be read."""
    empties, writes = (_JSET, 0, 2, os.O_TRUNC), (_JSET, 1, 0, os.O_WRONLY | os.O_RDWR)
    return [_load_argument(index), empties, writes, _refuse(), _return(_ALLOW)]


def _instructions(machine: str, allowed: Allowed) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _ARCH)
    yield (_JEQ, 1, 0, _ARCHES[machine])  # the 32-bit calls of the same kernel have other numbers
    yield _return(_KILL_PROCESS)
    yield (_LOAD, 0, 0, _NR)
    yield (_JGE, 0, 1, _X32)
    yield _refuse(errno.ENOSYS)
    yield (_JGT, 0, 1, numbers.LAST)
    yield _refuse(errno.ENOSYS)
    for call, body in _rules(allowed):
        number = call[1 if machine == "aarch64" else 0]
        if number is not None:
            yield from _only(number, body)
    yield _return(_ALLOW)


def _rules(allowed: Allowed) -> Iterator[tuple[numbers.Call, list[Instruction]]]:
    yield numbers.CLONE3, [_refuse(errno.ENOSYS)]  # its flags are in memory; libc then uses clone
    refused = list(numbers.DENIED.values())
    refused += [] if allowed.signals else numbers.SIGNALS.values()
    refused += [] if allowed.locks else [numbers.FLOCK]
    refused += [] if allowed.notices else numbers.NOTICES.values()
    refused += [] if allowed.truncation else [numbers.TRUNCATE]
    yield from ((call, [_refuse()]) for call in refused)
    if not allowed.metadata:
        yield from ((call, [_refuse(0)]) for call in numbers.METADATA.values())
    if not allowed.truncation:
        yield numbers.OPENAT2, [_refuse(errno.ENOSYS)]
        yield numbers.OPEN, _no_reader_truncates(1)
        yield numbers.OPENAT, _no_reader_truncates(2)
    yield numbers.CLONE, [_load_argument(0), (_JSET, 0, 1, CLONE_NEW_ANY), _refuse(), _return(_ALLOW)]
    families = [_AF_UNIX, _AF_INET, _AF_INET6] if allowed.sockets else []
    yield numbers.SOCKET, _one_of(0, families, errno.EAFNOSUPPORT if families else errno.EPERM)
    yield numbers.SOCKETPAIR, _one_of(0, [_AF_UNIX], errno.EAFNOSUPPORT)
    yield numbers.IOCTL, _none_of(1, [_TIOCSTI, _TIOCLINUX])
    owners = [] if allowed.signals else [_F_SETOWN, _F_SETSIG, _F_SETOWN_EX]  # the kernel sends that signal
    yield numbers.FCNTL, _none_of(1, [_F_SETLEASE, _F_NOTIFY, *owners])
    yield numbers.PERSONALITY, _one_of(0, [0, _READ_PERSONALITY], errno.EPERM)
    # Limits and priorities: its own, nobody else's.
    for call in numbers.OF_A_PROCESS.values():
        yield call, _exactly((0, 0))
    yield numbers.SETPRIORITY, _exactly((0, 0), (1, 0))
    yield numbers.IOPRIO_SET, _exactly((0, _IOPRIO_PROCESS), (1, 0))


def seccomp_program(machine: str, allowed: Allowed) -> bytes:
    """The filter's bytes for `machine`, x86_64 or aarch64."""
    return b"".join(struct.pack("=HBBI", *step) for step in _instructions(machine, allowed))
