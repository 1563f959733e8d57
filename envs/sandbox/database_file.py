"""A SQLite database of the host as bytes: read without changing it, locking it or following a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_DATABASE_MB = 256
_MAGIC = b"SQLite format 3\0"
_BESIDE = ("-wal", "-journal")  # what SQLite keeps beside a database: commits to come, a rollback to do
_ATTEMPTS = 5


def read_database(path: str | os.PathLike[str], name: str) -> dict[str, bytes]:
    """The files of the database at `path`, to be written side by side under `name`.

    A write-ahead log or journal beside it comes along, so that the copy holds all that was committed. No lock
    is taken: where a writer was at work between the first byte and the last, the reading begins again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a link, no regular file, no SQLite database, or larger than MAX_DATABASE_MB; or it
            never stood still.
    """
    place = Path(path)
    for _ in range(_ATTEMPTS):
        before = _marks(place)
        files = {name: _read(place)}
        for suffix in _BESIDE:
            if before[suffix] is not None and (beside := _read(place.with_name(place.name + suffix))):
                files[name + suffix] = beside
        if _marks(place) == before:
            break
    else:
        raise ValueError(
            f"database {place} is being written to: {_ATTEMPTS} attempts to copy it met a change; close its "
            "writer, or give a copy (sqlite3 FILE '.backup COPY')"
        )
    if files[name] and not files[name].startswith(_MAGIC):
        raise ValueError(f"{place} is no SQLite database: it does not begin with {_MAGIC!r}")
    return files


def _marks(place: Path) -> dict[str, tuple[int, int, int] | None]:
    """What changes when one of the files is written: inode, size, time of change; None for one not there."""
    marks: dict[str, tuple[int, int, int] | None] = {}
    for suffix in ("", *_BESIDE):
        try:
            found = os.lstat(place.with_name(place.name + suffix))
        except FileNotFoundError:
            marks[suffix] = None
        else:
            marks[suffix] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return marks


def _read(place: Path) -> bytes:
    """A regular file's bytes, no link followed in its last part; a fifo does not hold the caller up."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no database {place}") from None
    except OSError as error:
        if place.is_symlink():
            raise ValueError(f"database {place} is a link; give the file that it points to") from None
        raise ValueError(f"database {place} cannot be read: {error.strerror}") from error
    with os.fdopen(_regular(descriptor, place), "rb") as file:
        return file.read((MAX_DATABASE_MB << 20) + 1)


def _regular(descriptor: int, place: Path) -> int:
    """`descriptor` itself, of a regular file that is not too large; otherwise it is closed."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ValueError(f"database {place} is no regular file")
    if found.st_size > MAX_DATABASE_MB << 20:
        os.close(descriptor)
        raise ValueError(
            f"database {place} has {found.st_size >> 20} MiB; expected at most {MAX_DATABASE_MB}, as every "
            "connection holds a copy of its own; give a smaller one"
        )
    return descriptor
