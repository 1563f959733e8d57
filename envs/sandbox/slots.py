"""Back-pressure: how many sandboxes work at once on this machine, however many processes ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import AsyncIterator

NUM_SLOTS = 2 * (os.cpu_count() or 1)
_LONGEST_WAIT_S = 0.02

_waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


@contextlib.asynccontextmanager
async def slot() -> AsyncIterator[None]:
    """Wait for one of the machine's slots and hold it.

    A slot is the name of an abstract socket: bound by one process at a time, free again when that one ends,
    however it ends, and no file anywhere. Users do not share them.
    """
    loop = asyncio.get_running_loop()
    turn = _waiting.setdefault(loop, asyncio.Semaphore(NUM_SLOTS))
    async with turn:
        with await _bound() as _:
            yield


async def _bound() -> socket.socket:
    wait_s = 0.0005
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
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
