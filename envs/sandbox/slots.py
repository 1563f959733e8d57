"""Back-pressure: how many sandboxes work at once on this machine, however many processes ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import AsyncIterator
from contextvars import ContextVar

from envs.deadline import paused
from envs.sandbox.base import SandboxError

NUM_SLOTS = 2 * (os.cpu_count() or 1)
SLOT_S = 300.0
"""A wait for a slot ends in a SandboxError: each is held for a bounded time, so something is wrong."""
_LONGEST_WAIT_S = 0.02

_is_held: ContextVar[bool] = ContextVar("is_slot_held", default=False)

_waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


@contextlib.asynccontextmanager
async def slot() -> AsyncIterator[None]:
    """Wait for one of the machine's slots and hold it; whoever holds one already goes on with that.

    A slot is the name of an abstract socket: bound by one process at a time, free again when that one ends,
    however it ends, and no file anywhere. Users do not share them. Deadlines do not count the wait: it is
    for the work of others.

    Raises:
        SandboxError: none was free for SLOT_S.
    """
    if _is_held.get():
        yield
        return
    turn = _waiting.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(NUM_SLOTS))
    async with contextlib.AsyncExitStack() as stack:
        try:
            with paused():
                async with asyncio.timeout(SLOT_S):
                    await stack.enter_async_context(turn)
                    stack.enter_context(await _bound())
        except TimeoutError:
            raise SandboxError(
                f"no free slot for {SLOT_S:g} s: {NUM_SLOTS} sandboxes may work at once here, and all do"
            ) from None
        token = _is_held.set(True)
        try:
            yield
        finally:
            _is_held.reset(token)


async def _bound() -> socket.socket:
    wait_s = 0.0005
    try:
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError as error:
        raise SandboxError(f"no slot can be asked for: {error}") from error
    first = os.getpid() % NUM_SLOTS
    while True:
        for number in range(NUM_SLOTS):
            with contextlib.suppress(OSError):
                name.bind(f"\0whetstone-sandbox-slot-{os.getuid()}-{(first + number) % NUM_SLOTS}")
                return name
        try:
            await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            name.close()
            raise
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
