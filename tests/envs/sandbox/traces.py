"""What sandboxes could leave on this machine, as seen by whoever looks."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from envs.sandbox import usage

PATIENCE_S = 20.0
"""For what ends by itself when its host was killed."""


def of_launcher(pid: int) -> list[str]:
    """Processes below a launcher, and its folders."""
    return [f"process {child}" for child in usage.descendants(pid)] + folders(pid)


def folders(launcher: int) -> list[str]:
    names = os.listdir(tempfile.gettempdir())
    return [name for name in names if name.startswith("whetstone-box-") and f"-{launcher}-" in name]


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def with_mark(mark: str) -> list[int]:
    """Processes whose command line has `mark` in it: a program in a sandbox can carry one."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and mark in Path(f"/proc/{name}/cmdline").read_text(errors="replace"):
                found.append(int(name))
    return [pid for pid in found if pid != os.getpid()]


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def descriptors(launcher: int) -> int:
    """Open ones of this process and, for root, of its launcher, which holds a name for each id in use."""
    own = len(os.listdir("/proc/self/fd"))
    return own + (len(os.listdir(f"/proc/{launcher}/fd")) if os.getuid() == 0 else 0)


def closed_again(launcher: int, before: int) -> bool:
    """Whether no more descriptors are open than before, which may be a moment after the end."""
    end = time.monotonic() + PATIENCE_S
    while descriptors(launcher) > before and time.monotonic() < end:
        time.sleep(0.02)
    return descriptors(launcher) <= before


def gone(pids: list[int]) -> list[int]:
    """Wait until these processes have ended; those that have not."""
    end = time.monotonic() + PATIENCE_S
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left
