"""Starting one sandbox: from the launcher to the first process behind its walls, for each backend of ours."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from envs.sandbox import bubblewrap, landlock, namespaces, owners, syscalls, usage
from envs.sandbox.cgroups import Group, Groups
from envs.sandbox.inside import serve
from envs.sandbox.room import Room
from envs.sandbox.seccomp import Allowed, seccomp_program

_FIRST_UID, _LAST_UID = 61184, 65519  # no distribution gives these to a person or a service
_FOLDER = "whetstone-box-"
_SLACK = 256
"""Processes that an ordinary user may start elsewhere while a sandbox of theirs is open: the kernel counts
all of a user's, so the sandbox's own are counted by the monitor."""


@dataclass(slots=True)
class Hold:
    """What a sandbox holds on the host until it is gone."""

    uid: int = -1
    uid_lock: socket.socket | None = None
    folder: str = ""
    shares_pids: bool = False  # its processes outlive its first one, unless each is ended
    is_wrapped: bool = False  # its first process is the child of another program's
    rulesets: list[int] = field(default_factory=list)
    group: Group | None = None

    def release(self) -> None:
        if self.group is not None:
            self.group.remove()
        for descriptor in self.rulesets:
            os.close(descriptor)
        self.rulesets.clear()
        if self.folder:
            with suppress(OSError):
                usage.remove_folder(self.folder)
        if self.uid_lock is not None:
            self.uid_lock.close()


def start(
    setup: dict[str, Any],
    request: dict[str, Any],
    host: socket.socket,
    hold: Hold,
    groups: Groups | None,
) -> int:
    """Start the sandbox of `request`; returns the pid of its first process, which answers on `host`."""
    if os.getuid() == 0:
        hold.uid, hold.uid_lock = _unused_uid()
    hold.is_wrapped = setup["backend"] == "bwrap"
    if groups is not None:
        num_wrappers = bubblewrap.NUM_PROCESSES if hold.is_wrapped else 0
        hold.group = groups.make(request["box"], request["limits"], num_wrappers=num_wrappers)
        request["calls_yield"] = groups.counts_memory
    match setup["backend"]:
        case "ns":
            flags = namespaces.NAMESPACES | (0 if hold.uid >= 0 else syscalls.CLONE_NEWUSER)
            live = partial(_live_in_ns, setup, request, host, hold)
            return _forked(lambda: syscalls.clone(flags), host, live, hold.group)
        case "bwrap":
            live = partial(bubblewrap.become, setup, request, host, hold.uid)
            return _forked(os.fork, host, live, hold.group)
        case "landlock" | "rlimits" as name:
            hold.shares_pids = True
            hold.folder = _make_folder(setup, request["box"], hold.uid)
            if name == "landlock":
                abi = setup.get("landlock_abi") or syscalls.landlock_abi()
                hold.rulesets[:] = landlock.make_rulesets(
                    abi, tuple(setup["readable"]), tuple(setup["hidden"]), hold.folder
                )
            live = partial(_live_beside, setup, request, host, hold)
            return _forked(os.fork, host, live, hold.group)
        case name:
            raise ValueError(f"no backend {name!r} is built in")


def _forked(
    fork: Callable[[], int], host: socket.socket, live: Callable[[], None], group: Group | None
) -> int:
    pid = fork()
    if pid:
        if group is not None:
            group.close_entry()
        return pid
    code = 1
    try:
        if group is not None:
            group.enter()
        live()
        code = 0
    except BaseException as error:
        with suppress(OSError):
            host.send(json.dumps({"op": "failed", "error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(code)


def keep_only(*descriptors: int, standard: tuple[int, ...] = (1, 2)) -> None:
    """Nothing of the launcher's stays open, and of the standard three `standard` lead nowhere."""
    for descriptor in standard:
        os.dup2(0, descriptor)
    last = 2
    for descriptor in sorted(descriptors):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, 1 << 30)


def _live_in_ns(setup: dict[str, Any], request: dict[str, Any], host: socket.socket, hold: Hold) -> None:
    keep_only(host.fileno())
    score = open_oom_score(request)
    limits = request["limits"]
    readable = tuple(setup["readable"])
    home = namespaces.home_beside(readable)
    walls = namespaces.Walls(
        readable=readable,
        hidden=tuple(setup["hidden"]),
        disk_mb=limits["disk_mb"],
        files=limits["files"],
        home=home,
        uid=hold.uid,
    )
    is_shared = namespaces.enter(walls)
    close_the_door(Allowed(locks=not is_shared, notices=not is_shared))
    room = make_room(setup, request, home=home, temp=namespaces.TEMP)
    serve(host, replace(room, kill_all=kill_all, oom_score=score))


def _live_beside(setup: dict[str, Any], request: dict[str, Any], host: socket.socket, hold: Hold) -> None:
    """Without namespaces: by Landlock, or (rlimits) by limits alone."""
    others = 0 if hold.uid >= 0 else usage.num_threads_of(os.getuid()) + _SLACK
    keep_only(host.fileno(), *hold.rulesets)
    score = open_oom_score(request)
    os.setsid()
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    is_reachable = all(map(is_open_to_all, setup["readable"]))
    # Where the interpreter lies in a folder of root's, the unused id needs this right to find it; what
    # may be read is for Landlock to decide all the same.
    keep = 0 if is_reachable or hold.uid < 0 else 1 << syscalls.CAP_DAC_READ_SEARCH
    namespaces.drop_privileges(hold.uid, keep)
    room = make_room(setup, request, home=f"{hold.folder}/work", temp=f"{hold.folder}/tmp")
    room = replace(room, nproc=room.nproc + others, dies_with_parent=True, oom_score=score)
    if not hold.rulesets:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        serve(host, room)
        return
    whole, calls = hold.rulesets
    syscalls.landlock_restrict(whole)
    abi = setup.get("landlock_abi") or syscalls.landlock_abi()
    allowed = Allowed(
        sockets=False,
        locks=False,
        notices=False,
        modes=hold.uid >= 0,  # an unused user owns nothing; an ordinary one owns files of the host
        times=False,  # and some files may be written by all
        truncation=abi >= landlock.TRUNCATE_ABI,
    )
    if abi >= landlock.SIGNALS_ABI:
        require_own_signals()
        room = replace(room, call_ruleset=calls, kill_all=kill_all)
    else:
        mute = seccomp_program(platform.machine(), replace(allowed, signals=False))
        room = replace(room, call_ruleset=calls, call_filter=mute)
    close_the_door(allowed)
    serve(host, room)


def require_own_signals() -> None:
    """Raise OSError unless this process is held to signal what it starts itself, and nobody outside."""
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise OSError("Landlock does not keep signals inside the sandbox, though its version says so")


def close_the_door(allowed: Allowed) -> None:
    """The last steps of the first process: nobody may look into it, and few system calls are left."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.install_seccomp(seccomp_program(platform.machine(), allowed))


def make_room(setup: dict[str, Any], request: dict[str, Any], *, home: str, temp: str) -> Room:
    """What calls meet behind the walls of any backend."""
    limits = request["limits"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return Room(
        home=home,
        temp=temp,
        env={
            "PATH": f"{os.path.dirname(setup['executable'])}:/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "TMPDIR": temp,
            "LANG": "C.UTF-8",
            "USER": "sandbox",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            **threads,
        },
        paths=setup["paths"],
        executable=setup["executable"],
        seed=request["seed"],
        mem_mb=limits["mem_mb"],
        nproc=limits["procs"] + 1,  # the first process is one more
        disk_mb=limits["disk_mb"],
        cpu_s=limits["cpu_s"],
        kill_all=lambda: usage.kill_tree(os.getpid()),
    )


def open_oom_score(request: dict[str, Any]) -> int:
    """Of this process, opened before its walls rise, where its calls are to be ended before it; else -1."""
    if not request.get("calls_yield"):
        return -1
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # or the file belongs to root
    try:
        return os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    finally:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def kill_all() -> None:
    """End every process that this one may signal, itself excepted: only where that is nobody outside."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def is_open_to_all(path: str) -> bool:
    """Whether any user can reach and read `path`."""
    path = os.path.realpath(path)
    try:
        if os.stat(path).st_mode & 0o005 != 0o005:
            return False
        while path != "/":
            path = os.path.dirname(path)
            if not os.stat(path).st_mode & 0o001:
                return False
    except OSError:
        return False
    return True


def _unused_uid() -> tuple[int, socket.socket]:
    """An id that no other sandbox of this machine has: limits on processes count by it.

    Held by an abstract socket's name, which is free again as soon as its holder ends, however it ends.
    """
    span = _LAST_UID - _FIRST_UID + 1
    for step in range(span):
        uid = _FIRST_UID + (os.getpid() * 61 + step) % span
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0whetstone-sandbox-uid-{uid}")
        except OSError:
            lock.close()
            continue
        return uid, lock
    raise OSError(f"all {span} user ids of sandboxes are in use: close some sandboxes")


def _make_folder(setup: dict[str, Any], number: int, uid: int) -> str:
    folder = f"{setup['temp']}/{_FOLDER}{owners.own_name()}-{number}"
    os.mkdir(folder, 0o700)
    for path in (folder, f"{folder}/work", f"{folder}/tmp"):
        if path != folder:
            os.mkdir(path, 0o700)
        if uid >= 0:
            os.chown(path, uid, uid)
    return folder


def sweep(temp: str) -> None:
    """Remove the folders of launchers that were themselves killed; what only has such a name stays."""
    users = {os.getuid()} | (set(range(_FIRST_UID, _LAST_UID + 1)) if os.getuid() == 0 else set())
    for name in os.listdir(temp):
        owner, _, number = name.removeprefix(_FOLDER).rpartition("-")
        if not name.startswith(_FOLDER) or not number.isdecimal() or not owners.is_dead(owner):
            continue
        with suppress(OSError):
            if os.lstat(f"{temp}/{name}").st_uid in users:
                usage.remove_folder(f"{temp}/{name}")
