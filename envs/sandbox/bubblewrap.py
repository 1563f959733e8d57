"""The `bwrap` backend's walls: bubblewrap makes the namespaces, our first process the rest.

What the usual command line lacks, and this one has: an empty environment for bwrap itself (it is readable
inside), no other descriptor, never as root, a seccomp filter, inputs that come over a socket, not as mounts,
one bounded tmpfs for all that is written, a read-only root, output and memory watched from outside.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from envs.sandbox import namespaces, syscalls
from envs.sandbox.places import SYSTEM

_PATHS = ("/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap")
PROGRAM = next((path for path in _PATHS if os.access(path, os.X_OK)), "")
NUM_PROCESSES = 2
"""Of its own, while it starts ours: one of them stays."""

_CODE = "/opt/whetstone"
_HOME, _TEMP = "/box/work", "/box/tmp"
_START = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); setup = json.loads(sys.argv[2]); "
    "from envs.sandbox.bubblewrap import live; live(setup)"
)


def become(setup: dict[str, Any], request: dict[str, Any], host: socket.socket, uid: int) -> None:
    """In a forked process: be bwrap, which starts our first process in its namespaces."""
    from envs.sandbox.boxes import keep_only

    if not PROGRAM:
        raise OSError("bwrap is not installed")
    keep_only(host.fileno(), standard=(1,))  # what bwrap complains of goes to the launcher's own file
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    os.set_inheritable(host.fileno(), True)
    words = {"setup": setup, "request": request, "host": host.fileno()}
    argv = [PROGRAM, *_arguments(setup, request["limits"]), "--", os.path.realpath(sys.executable)]
    # -S: the interpreter's own modules alone; what a call may import is set later.
    argv += ["-P", "-s", "-S", "-B", "-X", "utf8", "-c", _START, _CODE, json.dumps(words)]
    os.execve(PROGRAM, argv, {"PYTHONHASHSEED": "0"})


def _arguments(setup: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    words = ["--unshare-user", "--unshare-all", "--disable-userns", "--new-session", "--die-with-parent"]
    words += ["--as-pid-1", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]
    for path in SYSTEM:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
    for path in namespaces.present(tuple(setup["readable"])):
        words += ["--ro-bind", path, path]
    for path in setup["hidden"]:
        if os.path.isdir(path):
            words += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
        else:
            words += ["--ro-bind", "/dev/null", path]
    here = os.path.dirname(os.path.abspath(__file__))
    words += ["--ro-bind", here, f"{_CODE}/envs/sandbox"]
    words += ["--ro-bind", f"{os.path.dirname(here)}/__init__.py", f"{_CODE}/envs/__init__.py"]
    words += ["--proc", "/proc", "--dir", "/dev"]
    for name in namespaces.DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    words += ["--size", str(limits["disk_mb"] << 20), "--perms", "0755", "--tmpfs", "/box"]
    for name, place in (("work", "/work"), ("tmp", "/tmp"), ("shm", "/dev/shm")):
        words += ["--dir", f"/box/{name}"]
        if not any(path.startswith(f"{place}/") for path in setup["readable"]):
            words += ["--symlink", f"/box/{name}", place]
    for name, place in namespaces.DEVICE_LINKS:
        words += ["--symlink", f"/proc/self/{place}", f"/dev/{name}"]
    return [*words, *_etc(), "--remount-ro", "/", "--chdir", "/"]


def _etc() -> list[str]:
    """Arguments, and open descriptors that they name: bwrap reads and closes them."""
    words = []
    for name, text in namespaces.etc_files(_HOME, namespaces.INSIDE_ID):
        descriptor = os.memfd_create(name, 0)
        os.write(descriptor, text.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        words += ["--file", str(descriptor), f"/etc/{name}"]
    return words


def live(words: dict[str, Any]) -> None:
    """Inside bwrap: become the first process of the sandbox."""
    from dataclasses import replace

    from envs.sandbox.boxes import close_the_door, kill_all, make_room, open_oom_score
    from envs.sandbox.inside import serve
    from envs.sandbox.seccomp import Allowed
    from envs.sandbox.warm import warm_up

    host = socket.socket(fileno=words["host"])
    os.set_inheritable(host.fileno(), False)
    os.dup2(0, 2)
    warm_up()
    score = open_oom_score(words["request"])
    room = make_room(words["setup"], words["request"], home=_HOME, temp=_TEMP)
    close_the_door(Allowed(locks=False, notices=False))
    serve(host, replace(room, kill_all=kill_all, oom_score=score))
