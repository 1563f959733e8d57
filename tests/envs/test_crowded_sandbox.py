"""Sandboxes under a crowd: whose turn has not come loses nothing by it, and no turn is kept for ever."""

import asyncio
import time
from contextlib import ExitStack, closing
from typing import Any

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, message
from envs.sandbox import slots
from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError
from envs.sandbox.grading import LATE, NOT_RUN, Place, grade_cases, make_cases
from envs.tasks.coding import ENV, score
from rewards.forms import Sample, of_episodes, score_here

SLEEPS = "import time\ndef f(x):\n time.sleep(60)"


def submitting(program: str, seed: int) -> Episode:
    task = ENV.make_task(0, seed)
    return Episode(
        task=task,
        transcript=(*task.messages, message("assistant", "")),
        stop_reason=StopReason.ANSWERED,
        final_state={"submitted": program},
    )


async def test_programs_that_sleep_leave_no_right_answer_of_their_group_unscored():
    """Their cases would fill every slot for at least 8 s; a reward may take 5."""
    sleepers = [submitting(SLEEPS, seed) for seed in range(2 * slots.NUM_SLOTS)]
    right = [submitting(str(ENV.make_task(0, seed).answer), seed) for seed in range(4)]
    form = of_episodes("coding", score)

    async def scored(episode: Episode) -> Score:
        return (await score_here(form, [Sample(episode=episode)], timeout_s=5))[0]

    scores = await asyncio.gather(*map(scored, [*sleepers, *right]))
    assert [one.error for one in scores if one.value is None] == []
    assert [one.value for one in scores] == [0.0] * len(sleepers) + [1.0] * len(right)


async def test_no_case_begins_after_one_of_its_solution_has_timed_out():
    cases = make_cases([[[x], x] for x in range(6)])
    place = Place(limits=Limits(wall_s=0.5))
    hangs = "def f(x):\n while x == 1: pass\n return x"
    started = time.monotonic()
    results = await grade_cases(hangs, cases, "f", place=place, max_parallel=1)
    assert [result.reason for result in results] == ["", "timeout", *[NOT_RUN] * 4]
    assert time.monotonic() - started < 3 * place.limits.wall_s + 2


async def test_a_solution_has_a_total_running_time_and_what_has_not_begun_by_then_is_late():
    cases = make_cases([[[x], x] for x in range(6)])
    place = Place(limits=Limits(wall_s=5), total_s=0.5)
    slow = "import time\ndef f(x):\n time.sleep(0.3)\n return x"
    results = await grade_cases(slow, cases, "f", place=place, max_parallel=1)
    assert [result.reason for result in results] == ["", "", *[LATE] * 4]


async def test_a_wait_for_a_slot_ends_with_an_error_of_the_world(monkeypatch):
    monkeypatch.setattr(slots, "SLOT_S", 0.3)
    with ExitStack() as taken:
        for _ in range(slots.NUM_SLOTS):
            taken.enter_context(closing(await slots._bound()))
        with pytest.raises(SandboxError, match=r"no free slot for 0\.3 s"):
            async with Sandbox.open():
                pass
    async with Sandbox.open() as box:
        assert (await box.python("print(1)")).stdout == "1\n"


class Broken(Place):
    """A world in which no program runs, the harmless one included, which ends with a status."""

    async def run(self, solution: str, entry: str, args: list[Any]) -> ExecResult:
        if entry == "harmless":
            return ExecResult(status="signal", signal=9)
        raise SandboxError("ended in mid-call")


async def test_a_control_that_does_not_give_its_value_is_the_worlds_failure():
    with pytest.raises(SandboxError, match="a harmless program did not run either: signal"):
        await grade_cases("def f(x): return x", make_cases([[[1], 1]]), "f", place=Broken())


async def test_whoever_holds_a_slot_needs_no_other():
    async def nested() -> None:
        async with slots.slot(), slots.slot():
            await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        await asyncio.gather(*(nested() for _ in range(3 * slots.NUM_SLOTS)))
