"""Removes what a run leaves, however it ends: `python -I -S reaper.py FOLDER`, a process of its own.

Its standard input is a pipe; its other end is held by the run's driver, which has gone when that closes,
killed or not. Then every process that has a file of FOLDER open, or in its command line, gets GRACE_S to end
or is killed, and the folder is removed. Standard library only; recipes/leftovers.py starts it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

GRACE_S = 5.0
"""For processes that see themselves that the driver has gone."""

DEADLINE_S = 30.0
"""For those that were killed to be gone."""

KEEP = b"keep"
"""What a driver writes whose run went wrong: the folder, with the logs of its processes, then stays."""


def users_of(folder: str) -> Iterator[int]:
    """Processes that have a file of `folder` open, work in it, or name it in their command line."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _uses(f"/proc/{name}", folder):
            yield int(name)


def _uses(process: str, folder: str) -> bool:
    with suppress(OSError), open(f"{process}/cmdline", "rb") as file:
        if folder.encode() in file.read():
            return True
    with suppress(OSError):
        if os.readlink(f"{process}/cwd").startswith(folder):
            return True
    with suppress(OSError):
        for descriptor in os.listdir(f"{process}/fd"):
            with suppress(OSError):
                if os.readlink(f"{process}/fd/{descriptor}").startswith(folder):
                    return True
    return False


def end_users(folder: str, *, grace_s: float = GRACE_S, deadline_s: float = DEADLINE_S) -> None:
    """Wait for the users of `folder` to end, then kill them."""
    started = time.monotonic()
    while (living := list(users_of(folder))) and time.monotonic() - started < grace_s + deadline_s:
        if time.monotonic() - started >= grace_s:
            for pid in living:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the driver has gone
    words = sys.stdin.buffer.read()
    end_users(folder)
    if KEEP not in words:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
