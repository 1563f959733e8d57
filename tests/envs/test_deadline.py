import asyncio
import subprocess
import sys
import time

import pytest

from envs.deadline import DeadlineError, in_thread, paused, within
from envs.sandbox.blocking import run_blocking

pytestmark = pytest.mark.alone


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


async def wait_for_others(seconds: float) -> str:
    with paused():
        await asyncio.sleep(seconds)
    return "waited"


async def test_time_spent_waiting_for_others_does_not_count_in_any_enclosing_deadline():
    assert await within(0.2, within(0.1, wait_for_others(0.5))) == "waited"


async def test_what_was_left_of_a_deadline_is_left_after_a_wait():
    async def waits_then_works() -> None:
        await asyncio.sleep(0.1)
        await wait_for_others(0.4)
        await asyncio.sleep(60)

    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no result after 0\.3 s"):
        await within(0.3, waits_then_works())
    assert 0.65 < time.monotonic() - started < 0.95  # 0.1 + 0.4 + the 0.2 that were left


async def test_waits_of_parallel_tasks_that_overlap_count_once():
    async def in_parallel() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(wait_for_others(0.3))
        await asyncio.sleep(60)

    started = time.monotonic()
    with pytest.raises(DeadlineError):
        await within(0.2, in_parallel())
    assert 0.45 < time.monotonic() - started < 0.8  # 0.3 + 0.2; the sum would be 1.4


async def test_a_wait_in_a_threads_own_loop_does_not_count_either():
    assert await within(0.2, in_thread(lambda: run_blocking(wait_for_others(0.6)))) == "waited"


async def test_a_task_that_outlives_its_deadline_may_wait_all_the_same():
    async def begins() -> asyncio.Task[str]:
        return asyncio.create_task(wait_for_others(0.1))

    assert await (await within(0.05, begins())) == "waited"
