"""One process holds a run's directory, and the lock goes with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK_NAME = ".lock"


class RunDirError(RuntimeError):
    """The directory cannot be used for this run; the message says what to do."""


def require_usable(path: Path) -> None:
    """Raise RunDirError now where RunDir(path) would, as things stand; nothing is made."""
    if (path / LOCK_NAME).exists():
        os.close(take(path))
    elif path.is_dir():
        _refuse_contents(path)


def take(path: Path, *, holds_run: bool = False) -> int:
    """Create `path` if need be and lock it. Returns the lock's handle; child processes do not inherit it."""
    if holds_run and not path.is_dir():
        raise RunDirError(f"{path} is no directory; --resume expects that of a run")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(
            f"run directory {path} cannot be made ({error.strerror}); give another --run-dir"
        ) from error
    lock_path = path / LOCK_NAME
    if not lock_path.exists() and not holds_run:
        _refuse_contents(path)
    handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode()
            raise RunDirError(
                f"run directory {path} is in use by {owner}; wait for it or give another --run-dir"
            ) from None
        if not holds_run:
            _refuse_contents(path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename} (boot {_boot_id()})".encode(), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _boot_id() -> str:
    """Which start of this host it is: a process number means nothing after the next one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _refuse_contents(path: Path) -> None:
    contents = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK_NAME)
    if contents:
        raise RunDirError(
            f"run directory {path} is not empty (it holds {', '.join(contents[:3])}"
            f"{', ...' if len(contents) > 3 else ''}); give an empty or a new --run-dir, or --resume"
        )
