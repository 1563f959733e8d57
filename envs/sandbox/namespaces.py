"""The `ns` backend's walls: own mounts, processes, network, ipc, host name; one bounded tmpfs; no privilege.

Each line holds against an attack that gets through without it (tests/envs/sandbox/attacks). Runs in the
process that `clone` made, which becomes the first one of the sandbox.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass

from envs.sandbox import syscalls
from envs.sandbox.places import SYSTEM, is_below
from envs.sandbox.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, mount

NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
)
INSIDE_ID = 1000
"""User and group id inside, where a user namespace maps them."""

TEMP = "/tmp"
_BASE = "/tmp"  # any folder: the new root is mounted over it, in a mount namespace that nobody else sees
DEVICES = ("null", "zero", "full", "random", "urandom")
DEVICE_LINKS = (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


@dataclass(frozen=True, kw_only=True)
class Walls:
    """What the sandbox sees of the host, and how much it may write."""

    readable: tuple[str, ...]  # beside the system's own folders: the interpreter and its packages
    hidden: tuple[str, ...]  # what of all these it does not see
    disk_mb: int
    files: int
    home: str  # where programs run
    uid: int  # the unused id that it takes where it is started by root; -1: a user namespace is made


def enter(walls: Walls) -> bool:
    """From here on the process is in its own world, without privileges.

    Returns whether files that it sees can be locked as the host's own.
    """
    if walls.uid < 0:
        _map_ids()
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # here, in the sandbox's own cgroup: it sees none above it
    owner = INSIDE_ID if walls.uid < 0 else walls.uid
    mount("", "/", "", MS_REC | syscalls.MS_PRIVATE)
    # Opened in the new mount namespace (an older descriptor cannot be bound), before the root hides them.
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in present(walls.readable)}
    devices = {name: os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in DEVICES}
    mount("tmpfs", _BASE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m,nr_inodes=4k")
    _make_devices(devices)
    _make_writable(walls, owner)
    is_shared = _bind_sources(sources)  # after what is writable: an interpreter may lie below /tmp
    _hide(walls.hidden)
    _make_etc(walls.home, owner)
    os.mkdir(f"{_BASE}/proc", 0o555)
    _mount_proc(f"{_BASE}/proc")
    for descriptor in (*sources.values(), *devices.values()):
        os.close(descriptor)
    syscalls.pivot_to(_BASE)
    syscalls.mount("", "/", "", syscalls.MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    _bring_loopback_up()
    socket.sethostname("sandbox")
    os.umask(0o022)
    drop_privileges(walls.uid)
    return is_shared


def _map_ids() -> None:
    """The one user of the namespace is who made it; no other id exists in it."""
    uid, gid = _outer_ids
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # or the files belong to root
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE_ID} {uid} 1"),
        ("gid_map", f"{INSIDE_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


_outer_ids = (os.getuid(), os.getgid())


def home_beside(readable: tuple[str, ...]) -> str:
    """/work; another name where the interpreter or its packages lie below that."""
    taken = [path.split("/")[1] for path in readable]
    return next(f"/{name}" for name in ("work", "sandbox", "home-of-sandbox") if name not in taken)


def present(readable: tuple[str, ...]) -> list[str]:
    """The paths to bind, outermost first, none inside another one."""
    chosen: list[str] = []
    for path in sorted({*SYSTEM, *readable}, key=lambda path: (path.count("/"), path)):
        is_covered = any(is_below(path, known) for known in chosen)
        if os.path.islink(path) or not os.path.exists(path) or is_covered:
            continue
        chosen.append(path)
    return chosen


def _bind_sources(sources: dict[str, int]) -> bool:
    """Show the host's folders; whether any file of them can be locked as the host's own."""
    is_shared = False
    os.mkdir(f"{_BASE}/empty", 0o555)
    for path in SYSTEM:
        if os.path.islink(path):
            _make_folder(os.path.dirname(path))
            os.symlink(os.readlink(path), _BASE + path)
    for path, descriptor in sources.items():
        target = _BASE + path
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            _make_folder(path)
            is_shared |= not _show_folder(descriptor, target)
        else:
            _make_folder(os.path.dirname(path))
            with open(f"/proc/self/fd/{descriptor}", "rb") as source, open(target, "wb") as copy:
                copy.write(source.read())
    return is_shared


def _show_folder(descriptor: int, target: str) -> bool:
    """Show a folder of the host read-only; whether its files are the sandbox's own to lock and to watch.

    A bound folder's files are the host's: a lock on one of them, or the notice that one is read, would be a
    channel between two sandboxes. Through an overlay they are others, of this mount alone.
    """
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    try:
        mount("overlay", target, "overlay", flags, f"lowerdir=/proc/self/fd/{descriptor}:{_BASE}/empty")
    except OSError:  # before Linux 5.11 in a user namespace, or on file systems that cannot lie below one
        mount(f"/proc/self/fd/{descriptor}", target, "", MS_BIND | MS_REC)
        syscalls.make_read_only(target)
        return False
    return True


def _hide(paths: tuple[str, ...]) -> None:
    """Nothing is seen of these: an empty folder, an empty file."""
    for path in paths:
        target = _BASE + path
        if os.path.isdir(target):
            mount("tmpfs", target, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,nr_inodes=1")
        elif os.path.exists(target):
            mount(f"{_BASE}/dev/null", target, "", MS_BIND)


def _make_folder(path: str) -> None:
    os.makedirs(_BASE + path, mode=0o755, exist_ok=True)


def _make_devices(devices: dict[str, int]) -> None:
    os.mkdir(f"{_BASE}/dev", 0o755)
    for name, descriptor in devices.items():
        target = f"{_BASE}/dev/{name}"
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
        mount(f"/proc/self/fd/{descriptor}", target, "", MS_BIND)
    for name, place in DEVICE_LINKS:
        os.symlink(f"/proc/self/{place}", f"{_BASE}/dev/{name}")


def _make_etc(home: str, owner: int) -> None:
    os.makedirs(f"{_BASE}/etc", exist_ok=True)
    for name, text in etc_files(home, owner):
        with open(f"{_BASE}/etc/{name}", "w") as file:
            file.write(text)


def etc_files(home: str, owner: int) -> list[tuple[str, str]]:
    """(name, content) of what programs look up in /etc."""
    return [
        ("passwd", f"root:x:0:0::/:/bin/false\nsandbox:x:{owner}:{owner}::{home}:/bin/sh\n"),
        ("group", f"root:x:0:\nsandbox:x:{owner}:\n"),
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ]


def _make_writable(walls: Walls, owner: int) -> None:
    """One file system for all that is written, so that its size and its inodes are true totals."""
    box = f"{_BASE}/box"
    os.mkdir(box, 0o755)
    options = f"size={walls.disk_mb}m,nr_inodes={walls.files},mode=0755,uid={owner},gid={owner}"
    mount("tmpfs", box, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for name, target in (("work", walls.home), ("tmp", TEMP), ("shm", "/dev/shm")):
        os.mkdir(f"{box}/{name}", 0o700)
        os.chown(f"{box}/{name}", owner, owner)
        os.mkdir(_BASE + target, 0o755)
        mount(f"{box}/{name}", _BASE + target, "", MS_BIND)
    syscalls.unmount(box)
    os.rmdir(box)


def _mount_proc(target: str) -> None:
    """A fresh /proc of the own processes alone; none where the machine refuses one (a masked container)."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for options in ("subset=pid", ""):  # without subset=pid, before Linux 5.8, it shows kernel-wide files too
        with suppress(OSError):
            mount("proc", target, "proc", flags, options)
            return


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP) + b"\0" * 22)


def drop_privileges(uid: int, keep: int = 0) -> None:
    """No capability but the one of the mask `keep`, none to be had, and the user `uid` (-1: as it is)."""
    syscalls.drop_bounding_set(keep)
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        if keep:
            syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        os.setresuid(uid, uid, uid)
    syscalls.clear_ambient()
    syscalls.set_capabilities(keep)
    if keep:
        syscalls.raise_ambient(keep.bit_length() - 1)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
