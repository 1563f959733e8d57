"""Removes what a run leaves, however it ends: `python -I -S reaper.py FOLDER`, a process of its own.

Its standard input is a pipe; its other end is held by the run's driver, which has gone when that closes,
killed or not. Then every process whose folder of temporary files is FOLDER, or that works or has a file open
in it, gets GRACE_S to end or is killed, and the folder is removed. Who merely names it is a bystander.
Standard library only, and envs/sandbox/usage.py, which is that too; recipes/leftovers.py starts it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GRACE_S = 5.0
"""For processes that see themselves that the driver has gone."""

DEADLINE_S = 30.0
"""For those that were killed to be gone."""

KEEP = b"keep"
"""What a driver writes whose run went wrong: the folder, with the logs of its processes, then stays."""


def users_of(folder: str) -> Iterator[int]:
    """Processes that have `folder` as their TMPDIR, have a file of it open, or work in it."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _uses(f"/proc/{name}", folder):
            yield int(name)


def _uses(process: str, folder: str) -> bool:
    with suppress(OSError), open(f"{process}/environ", "rb") as file:
        if f"TMPDIR={folder}".encode() in file.read().split(b"\0"):
            return True
    with suppress(OSError):
        if _is_in(os.readlink(f"{process}/cwd"), folder):
            return True
    with suppress(OSError):
        for descriptor in os.listdir(f"{process}/fd"):
            with suppress(OSError):
                if _is_in(os.readlink(f"{process}/fd/{descriptor}"), folder):
                    return True
    return False


def _is_in(path: str, folder: str) -> bool:
    """Whether a path, as the kernel tells it, is the folder or in it: another's name may begin the same."""
    folder = os.path.realpath(folder)
    return path == folder or path.startswith(f"{folder}/")


def end_users(folder: str, *, grace_s: float = GRACE_S, deadline_s: float = DEADLINE_S) -> None:
    """Wait for the users of `folder` to end, then kill them."""
    started = time.monotonic()
    while (living := list(users_of(folder))) and time.monotonic() - started < grace_s + deadline_s:
        if time.monotonic() - started >= grace_s:
            for pid in living:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def remove(folder: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Remove `folder`, whatever programs made in it: any depth, any permission."""
    from envs.sandbox.usage import remove_folder  # of the project, which is on the path from `main` on

    end = time.monotonic() + deadline_s
    while os.path.exists(folder) and time.monotonic() < end:
        try:
            remove_folder(folder)
        except OSError:  # something in it went, or came, at the same time
            time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)  # what can be removed, where not all can


def main(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the driver has gone
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    words = sys.stdin.buffer.read()
    end_users(folder)
    if KEEP not in words:
        remove(folder)


if __name__ == "__main__":
    main(sys.argv[1])
