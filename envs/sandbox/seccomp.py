"""The seccomp filter: which system calls a sandboxed program has, as a classic BPF program.

An argument is compared by its low 32 bits where the kernel reads no more of it (CVE-2019-10063: TIOCSTI with
bits above them set went past filters that compared all 64).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from envs.sandbox.syscalls import CLONE_NEW_ANY

_LOAD, _JEQ, _JGE, _JGT, _JSET, _RET = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_LAST = 462  # mseal, Linux 6.10: what is newer does not exist for the program

# Name: number on x86-64 and on aarch64; None where it has none. From 424 on they are the same.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # mounts, roots and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # memory and messages that no limit bounds, and that outlive a program
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large parts of the kernel that nothing harmless needs
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "finit_module": (313, 273),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}
_SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
_CLONE3 = 435
_CLONE, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (41, 198), (53, 199), (16, 29)
_FCNTL, _FLOCK, _PRLIMIT, _PERSONALITY = (72, 25), (73, 32), (302, 261), (135, 92)
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE, _F_NOTIFY = 1024, 1026
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


def _none_of(index: int, refused: list[int]) -> list[Instruction]:
    """Argument `index` must be none of `refused`."""
    checks = [(_JEQ, len(refused) - place, 0, value) for place, value in enumerate(refused)]
    return [_load_argument(index), *checks, _return(_ALLOW), _refuse()]


def _instructions(machine: str, *, sockets: bool, signals: bool, locks: bool) -> Iterator[Instruction]:
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
    denied = dict(_DENIED)
    if not signals:
        denied |= _SIGNALS
    if not locks:
        denied["flock"] = _FLOCK
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            yield from _only(number, [_refuse()])
    namespaces = [_load_argument(0), (_JSET, 0, 1, CLONE_NEW_ANY), _refuse(), _return(_ALLOW)]
    yield from _only(_CLONE[column], namespaces)
    families = [_AF_UNIX, _AF_INET, _AF_INET6] if sockets else []
    yield from _only(_SOCKET[column], _one_of(0, families, errno.EAFNOSUPPORT if sockets else errno.EPERM))
    yield from _only(_SOCKETPAIR[column], _one_of(0, [_AF_UNIX], errno.EAFNOSUPPORT))
    yield from _only(_IOCTL[column], _none_of(1, [_TIOCSTI, _TIOCLINUX]))
    yield from _only(_FCNTL[column], _none_of(1, [_F_SETLEASE, _F_NOTIFY]))
    yield from _only(_PRLIMIT[column], _one_of(0, [0], errno.EPERM))  # its own limits, nobody else's
    yield from _only(_PERSONALITY[column], _one_of(0, [0, _READ_PERSONALITY], errno.EPERM))
    yield _return(_ALLOW)


def seccomp_program(machine: str, *, sockets: bool, signals: bool = True, locks: bool = True) -> bytes:
    """The filter's bytes for `machine`, x86_64 or aarch64.

    `sockets`: whether unix and internet sockets may be made (where a network namespace has nothing in it);
    a pair of connected ones always may. `signals`: whether processes may be signalled at all (where none but
    the program's own can be reached). `locks`: whether flock may be used (where no file is shared).
    """
    steps = _instructions(machine, sockets=sockets, signals=signals, locks=locks)
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
