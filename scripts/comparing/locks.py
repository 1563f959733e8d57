"""Who is at work in a folder: one comparison in its --out, one run in its own directory."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.comparing.names import CompareError
from scripts.viewer.run import LOCK_NAME, is_locked

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec nothing may be


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, for one comparison; the lock goes with the process, however it ends.

    Raises CompareError where another process holds it. Child processes do not inherit the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompareError(
                f"--out {folder} is in use by {_text(folder)}; wait for it or give another --out"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        os.close(handle)


def owner(folder: Path) -> str | None:
    """The process that holds `folder`, in its own words; None where none does."""
    return _text(folder) if is_locked(folder / LOCK_NAME) else None


def _text(folder: Path) -> str:
    return (folder / LOCK_NAME).read_text(errors="replace") or "a process that has not said its number yet"


def dies_with_parent() -> Callable[[], None]:
    """A preexec_fn: the child is killed with its parent, however that one ends.

    Killed rather than asked to end: what a cell has not finished is begun anew, and nobody would be left to
    see whether it heard. The kernel counts the thread that started the child as its parent, so that must be
    one that lasts: the main thread, here and in a Ray worker.
    """
    parent = os.getpid()

    def prepare() -> None:
        if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it ended between fork and prctl, which the kernel no longer tells
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare
