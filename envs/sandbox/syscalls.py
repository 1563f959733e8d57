"""The system calls that Python has no function for. x86-64 and aarch64 Linux.

Every function raises OSError with the kernel's errno and what was tried.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from contextlib import suppress

MACHINE = platform.machine()
IS_SUPPORTED = MACHINE in ("x86_64", "aarch64")

# PyDLL keeps the interpreter's lock: `clone` must come back in the child as the one thread that there is.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_CLONE, _PIVOT_ROOT, _CAPSET = (220, 41, 91) if MACHINE == "aarch64" else (56, 155, 126)
_MOUNT_SETATTR = 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEW_ANY = 0x7E020000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 24, 36, 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
_SECCOMP_MODE_FILTER = 2
CAP_DAC_READ_SEARCH = 2

_LANDLOCK_VERSION, _RULE_PATH_BENEATH = 1, 1


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone(flags: int) -> int:
    """fork() into new namespaces: 0 in the child, its pid in the parent. Only for a process of one thread."""
    sigchld = 17
    return _check(_syscall(_CLONE, ctypes.c_ulong(flags | sigchld), None, None, None, None), "clone")


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = (source.encode(), target.encode(), kind.encode() or None)
    result = _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount {kind or 'bind'} on {target}")


def make_read_only(target: str) -> None:
    """Read-only, without set-uid programs and devices, for the mount at `target` and those below it."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    result = _syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, 32)
    if result < 0:  # before Linux 5.12; a mount's locked flags must be repeated
        locked = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 0x400 | 0x800 | 0x1000)
        mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | locked)


def pivot_to(root: str) -> None:
    """Make `root`, a mount, the root directory, and detach what was there."""
    os.chdir(root)
    _check(_syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def unmount(target: str) -> None:
    """Take a mount out of sight at once; it ends with its last user."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount of {target}")


def prctl(option: int, *arguments: int) -> None:
    numbers = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *numbers), f"prctl {option}")


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def set_capabilities(mask: int) -> None:
    """These capabilities and no others, in the permitted, effective and inheritable sets."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    header = _CapHeader(0x20080522, 0)
    _check(_syscall(_CAPSET, ctypes.byref(header), data), "capset")


def drop_bounding_set(keep: int) -> None:
    """No program that is executed from here on can have a capability, but those of the mask `keep`."""
    for capability in range(64):
        try:
            if not keep & 1 << capability:
                prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one that this kernel knows
            return


def raise_ambient(capability: int) -> None:
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def clear_ambient() -> None:
    with suppress(OSError):  # before Linux 4.3: there are none
        prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_seccomp(program: bytes) -> None:
    """Filter the system calls of this process and of all that it starts; needs no_new_privs."""
    block = _Program(len(program) // 8, program)
    result = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(block), 0, 0)
    _check(result, "seccomp filter")


def landlock_abi() -> int:
    """The version of Landlock here; 0 for none."""
    return max(0, _syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION)))


def landlock_ruleset(handled_fs: int, handled_net: int, scoped: int, abi: int) -> int:
    """A descriptor of a new ruleset that refuses what it handles, until a rule allows it."""
    words = (ctypes.c_uint64 * 3)(handled_fs, handled_net, scoped)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    return _check(_syscall(_LANDLOCK_CREATE, words, ctypes.c_size_t(size), 0), "landlock_create_ruleset")


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def landlock_allow(ruleset: int, path: str, access: int) -> None:
    """Allow `access` to `path` and what is below it."""
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(access, parent)
        result = _syscall(_LANDLOCK_ADD, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        _check(result, f"landlock rule for {path}")
    finally:
        os.close(parent)


def landlock_restrict(ruleset: int) -> None:
    """Hold this process, and all that it starts, to `ruleset`; needs no_new_privs."""
    _check(_syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")


def set_limit(kind: int, value: int, *, spare: int = 0) -> None:
    """Lower a resource limit, soft and (by `spare` higher) hard; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    most = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(kind, (min(value, most), most))
