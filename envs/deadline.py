"""Wall-clock deadlines for code that may not return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_active: ContextVar[tuple[Deadline, ...]] = ContextVar("deadlines", default=())
"""Those that enclose this task: tasks and threads that are started within take them along."""


class DeadlineError(Exception):
    """The work did not finish within its `timeout_s`."""


class Deadline:
    """Like `asyncio.timeout`, except that time spent under `paused` does not count.

    Example:
        async with Deadline(5) as deadline:     # TimeoutError after 5 s, and then deadline.expired()
            await work()
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._num_pauses = 0
        self._left_s: float | None = None

    def expired(self) -> bool:
        """Whether it ended its block."""
        return self._timeout.expired()

    def count(self, num_more: int) -> None:
        """That many more, or fewer, of the tasks within are waiting for what is not theirs to hasten."""
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if is_here:
            self._count(num_more)
        else:
            with suppress(RuntimeError):  # its loop has closed: it is over
                self._loop.call_soon_threadsafe(self._count, num_more)

    def _count(self, num_more: int) -> None:
        """Waits that overlap are one: the clock stands still from the first one's start to the last's end."""
        stood, self._num_pauses = self._num_pauses > 0, self._num_pauses + num_more
        stands = self._num_pauses > 0
        if stood == stands or self._is_over or self._timeout.expired() or self._timeout_s is None:
            return
        now = self._loop.time()
        if stands:
            self._left_s = (self._timeout.when() or now) - now
            self._timeout.reschedule(None)
        elif self._left_s is not None:
            self._timeout.reschedule(now + self._left_s)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(self._timeout_s)
        await self._timeout.__aenter__()
        self._is_over = False
        self._token = _active.set((*_active.get(), self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._is_over = True
        _active.reset(self._token)
        return await self._timeout.__aexit__(kind, error, trace)


@contextmanager
def paused() -> Iterator[None]:
    """No enclosing deadline counts the time in this block: a wait that others cause, itself bounded."""
    deadlines = _active.get()
    for deadline in deadlines:
        deadline.count(1)
    try:
        yield
    finally:
        for deadline in deadlines:
            deadline.count(-1)


async def within(timeout_s: float | None, work: Awaitable[T]) -> T:
    """The result of `work`, or DeadlineError after `timeout_s` seconds (None: no deadline).

    What `work` waits under `paused` does not count.
    """
    deadline = Deadline(timeout_s)
    try:
        async with deadline:
            return await work
    except TimeoutError:
        if not deadline.expired():  # the work's own TimeoutError, for instance a socket's
            raise
        raise DeadlineError(f"no result after {timeout_s:g} s") from None


async def in_thread(function: Callable[[], T]) -> T:
    """The result of a blocking function, run beside the event loop.

    The thread is a daemon of its own, not one of an executor's: an executor is joined when the loop ends, so
    one call that never returns would hang the run at its exit. An abandoned call still runs to its end: a
    thread cannot be killed; code that must be stopped belongs into a process.
    """
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(finished.set)

    threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
    await finished.wait()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # no error: it is a T
