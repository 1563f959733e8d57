"""Wall-clock deadlines for code that may not return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(Exception):
    """The work did not finish within its `timeout_s`."""


async def within(timeout_s: float | None, work: Awaitable[T]) -> T:
    """The result of `work`, or DeadlineError after `timeout_s` seconds (None: no deadline)."""
    deadline = asyncio.timeout(timeout_s)
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

    threading.Thread(target=work, daemon=True).start()
    await finished.wait()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # no error: it is a T
