"""Append-only JSON lines that survive a crash: a line counts once its newline is on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JsonlWriter:
    """Appends rows to one file; `append` returns when they are on disk.

    A file whose last writer was killed may end in half a line: opening it cuts that half off. An append that
    fails (a full disk) cuts the file back to what it was and raises the error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        is_new = not path.exists()
        self._file = path.open("ab+", buffering=0)
        self.num_bytes = _end_of_last_line(self._file.fileno())
        self._file.truncate(self.num_bytes)
        if is_new:
            fsync_folder(path.parent)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one line a row, then fsync once."""
        self.append_lines(encode_line(row) for row in rows)

    def append_lines(self, lines: Iterable[bytes]) -> None:
        """As `append`, for lines that `encode_line` made."""
        data = memoryview(b"".join(lines))
        size = len(data)
        try:
            while data:  # an unbuffered write may take only a part
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self.num_bytes)
            error.add_note(f"{self.path} was left as it was before this append of {size} bytes")
            raise
        self.num_bytes += size

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode_line(row: Mapping[str, Any]) -> bytes:
    """One row as JSON with its newline, in ASCII: a policy may write what is not valid Unicode.

    Every float round-trips exactly; NaN and infinities are written as Python's json reads them.
    """
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, lazily. A last line without its newline was never finished and does not count."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: not JSON ({error}); the file was changed or damaged"
                ) from error


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: creating or renaming a file is on disk only after this."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _end_of_last_line(handle: int, chunk_size: int = 1 << 16) -> int:
    """The length of the file up to and including its last newline."""
    end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - chunk_size)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
