"""Reading what a call writes, with a bound: nobody but the reader can bound it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

FLOOD = 16
"""A call that writes this many times what is kept is stopped."""

_CHUNK = 1 << 16
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(slots=True)
class _Stream:
    reader: int
    writer: int
    max_bytes: int
    is_strict: bool
    kept: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0


class Pump:
    """The pipes of one call. What goes past a stream's bound is read and thrown away.

    `stop` is called once, when a stream floods; a strict one (`add`) floods at its bound.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._has_stopped = False
        self._streams: list[_Stream] = []
        self._loop = asyncio.get_running_loop()

    def add(self, max_bytes: int, *, is_strict: bool = False) -> int:
        """A new pipe; returns the descriptor to write to."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        stream = _Stream(reader, writer, max_bytes, is_strict)
        self._streams.append(stream)
        self._loop.add_reader(reader, self._read, stream)
        return writer

    def close_writers(self) -> None:
        """The call has its own copies now."""
        for stream in self._streams:
            if stream.writer >= 0:
                os.close(stream.writer)
                stream.writer = -1

    def finish(self) -> list[tuple[bytes, bool]]:
        """What each stream held, and whether more was written. Never waits: the call has ended."""
        for stream in self._streams:
            while self._read(stream):
                pass
        return [(bytes(stream.kept), stream.num_bytes > stream.max_bytes) for stream in self._streams]

    def _read(self, stream: _Stream) -> bool:
        """Take what is there; False when that was nothing."""
        if stream.reader < 0:
            return False
        try:
            data = os.read(stream.reader, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._close(stream)
            return False
        stream.num_bytes += len(data)
        stream.kept += data[: max(0, stream.max_bytes - len(stream.kept))]
        flood = stream.max_bytes * (1 if stream.is_strict else FLOOD)
        if stream.num_bytes > flood and not self._has_stopped:
            self._has_stopped = True
            self._stop()
        return True

    def _close(self, stream: _Stream) -> None:
        self._loop.remove_reader(stream.reader)
        os.close(stream.reader)
        stream.reader = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_writers()
        for stream in self._streams:
            if stream.reader >= 0:
                with contextlib.suppress(OSError):
                    self._close(stream)


@contextlib.contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """A descriptor of a file in memory that holds `data` and can hold no more: no limit bounds such."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield descriptor
    finally:
        os.close(descriptor)


def text_of(data: bytes) -> str:
    """UTF-8, the rest as escapes; NUL and other control characters too, so that logs stay text."""
    text = data.decode(errors="backslashreplace")
    return text.translate(_CONTROL)


_CONTROL = {number: f"\\x{number:02x}" for number in (*range(32), 127) if chr(number) not in "\t\n\r"}
