"""Files and folders that appear whole or not at all, whatever kills the writer."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from rollout.jsonl import fsync_folder


def atomic_write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as indented JSON: temporary file, fsync, rename, fsync of the folder.

    An error (a full disk, a value that is not JSON) leaves what was at `path` as it was.
    """
    text = json.dumps(value, indent=2) + "\n"
    temporary = _temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an exception.

    Every file and folder inside is fsynced first, then renamed in one step, then the parent is fsynced: a
    reader that sees `path` sees all of it. On an exception the temporary is removed. An existing `path` is
    never touched: FileExistsError, before the block if it is there already, after it if another process was
    faster. What a killed writer of the same path left behind is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_existing(path)
    _remove_abandoned(path)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        _fsync_tree(temporary)
        _refuse_existing(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(path.parent)


def require_free_bytes(folder: Path, num_bytes: int, purpose: str) -> None:
    """Raise OSError when the disk that holds `folder` has less than `num_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"{folder}: {free / 1e6:,.0f} MB free, {num_bytes / 1e6:,.0f} MB needed for {purpose}; "
            f"free {(num_bytes - free) / 1e6:,.0f} MB or choose another disk"
        )


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(
            f"{path} exists already and is never overwritten; remove it or choose another name"
        )


def _remove_abandoned(path: Path) -> None:
    """Remove temporaries of `path` whose writer on this host is dead.

    One with our own number was left by an earlier process of that number: we have not begun.
    """
    for left in path.parent.glob(f".{path.name}.{platform.node()}.*.tmp"):
        process = left.name.split(".")[-2]
        if process == str(os.getpid()) or not Path("/proc", process).exists():
            shutil.rmtree(left)


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            handle = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(Path(folder))
