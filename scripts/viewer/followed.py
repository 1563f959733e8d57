"""Reading a file of JSON lines while somebody else still appends to it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_PROBLEMS = 100
"""Problems kept word for word; a file of garbage has one a line, and memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Line:
    """One finished line: `number` counts from 1, `offset` is where it begins, in bytes."""

    number: int
    offset: int
    data: bytes


class FollowedFile:
    """A cursor in a file that grows. A last line without its newline is not finished and left for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.size = 0
        self._number = 0
        self._inode: int | None = None

    def look(self) -> bool:
        """Note how large the file is now.

        True: it was replaced or cut since the last look (a resumed run takes steps back), so that everything
        read before is void and the cursor is at the beginning again.
        """
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            inode, self.size = None, 0
        else:
            inode, self.size = found.st_ino, found.st_size
        is_void = self._inode is not None and (inode != self._inode or self.size < self.position)
        self._inode = inode
        if is_void:
            self.position = self._number = 0
        return is_void

    def lines(self, budget_s: float) -> Iterator[Line]:
        """The finished lines from the cursor on, until `budget_s` seconds have passed."""
        if self.position >= self.size:
            return
        ends = time.monotonic() + budget_s
        with self.path.open("rb") as file:
            file.seek(self.position)
            for data in file:
                if not data.endswith(b"\n"):
                    return
                line = Line(self._number + 1, self.position, data)
                self._number, self.position = line.number, line.offset + len(data)
                yield line
                if time.monotonic() > ends:
                    return

    @property
    def is_behind(self) -> bool:
        """Whether bytes are left that were there at the last look; half a line is such."""
        return self.position < self.size


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that cannot be used, and why."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.message}"


class Problems:
    """The first MAX_PROBLEMS, and how many there are."""

    def __init__(self) -> None:
        self.first: list[Problem] = []
        self.count = 0

    def add(self, file: Path, line: int, error: Exception) -> None:
        self.count += 1
        if len(self.first) < MAX_PROBLEMS:
            self.first.append(Problem(file.name, line, f"{error}; the file was changed or damaged"))
