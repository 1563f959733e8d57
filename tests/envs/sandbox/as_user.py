"""Run a command as an ordinary user, from tests that root runs.

The interpreter may lie in a folder that only root can enter. So the command gets mounts of its own, in
which such a folder is an empty one with nothing but the interpreter in it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from functools import cache

from envs.sandbox.boxes import is_open_to_all
from envs.sandbox.places import readable_places

UID = 12345


def command(argv: list[str]) -> list[str]:
    """`argv` as the user UID; as it is where the tests already run as an ordinary user."""
    if os.getuid() != 0:
        return argv
    drop = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", *argv]
    closed = [path for path in readable_places() if not is_open_to_all(path)]
    steps = ["mount --make-rprivate /", "mount -t tmpfs -o mode=0755 tmpfs /run"]
    for number, path in enumerate(closed):
        steps += [f"mkdir /run/{number}", f"mount --bind {shlex.quote(path)} /run/{number}"]
    for folder in dict.fromkeys(map(_closed_ancestor, closed)):
        steps.append(f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(folder)}")
    for number, path in enumerate(closed):
        steps += [f"mkdir -p {shlex.quote(path)}", f"mount --move /run/{number} {shlex.quote(path)}"]
    return ["unshare", "-m", "sh", "-c", " && ".join([*steps, f"exec {shlex.join(drop)}"])]


def _closed_ancestor(path: str) -> str:
    """The outermost folder above `path` that not everybody may enter."""
    parts = path.split("/")
    ancestors = ["/".join(parts[:number]) for number in range(2, len(parts) + 1)]
    return next(folder for folder in ancestors if not os.stat(folder).st_mode & 0o001)


@cache
def problem() -> str:
    """Why no command can be run as an ordinary user here; "" where it can."""
    if os.getuid() != 0:
        return ""
    for program in ("unshare", "setpriv", "mount"):
        if shutil.which(program) is None:
            return f"an ordinary user is made with {program}, which is not installed"
    trial = subprocess.run(command([sys.executable, "-c", "1"]), capture_output=True, text=True, timeout=60)
    return f"no ordinary user can be made here: {trial.stderr.strip()}" if trial.returncode else ""
