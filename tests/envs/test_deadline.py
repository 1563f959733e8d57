import asyncio
import subprocess
import sys
import time

import pytest

from envs.deadline import DeadlineError, in_thread, within


async def test_a_blocking_call_is_left_behind_at_the_deadline():
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no result after 0\.05 s"):
        await within(0.05, in_thread(lambda: time.sleep(2)))
    assert time.monotonic() - start < 1


async def test_the_works_own_timeout_is_not_taken_for_the_deadline():
    async def socket_times_out():
        raise TimeoutError("socket")

    with pytest.raises(TimeoutError, match="socket"):
        await within(5, socket_times_out())


async def test_the_loop_runs_while_a_thread_blocks():
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticker = asyncio.create_task(tick())
    assert await in_thread(lambda: time.sleep(0.2) or "done") == "done"
    ticker.cancel()
    assert ticks > 3


async def test_what_the_thread_raises_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


def test_an_abandoned_call_does_not_hold_up_the_exit():
    code = (
        "import asyncio, time\n"
        "from envs.deadline import *\n"
        "try: asyncio.run(within(0.1, in_thread(lambda: time.sleep(60))))\n"
        "except DeadlineError: print('left')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "left\n"
