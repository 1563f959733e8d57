"""Whatever of a trajectory depends on the clock is found, by real episodes that run out of their time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from envs.episode import Episode, Score
from envs.tool_env import ToolEnv
from envs.tools import tool
from rewards.base import Reward
from rollout import agent
from rollout.agent import run_group, score_trajectory
from rollout.clock import ClockError, ended_by_clock, require_no_clock
from rollout.collector import Collector, CollectorSpec
from rollout.limits import Limits
from rollout.task_stream import TaskStream
from rollout.trajectory import TrajectoryGroup
from tests.scripted import CALC, CALL, LIMITS, RENDERER, REWARD, TASK, Patient, Script, Trouble, episode


class Slow(ToolEnv):
    @tool(timeout_s=0.05)
    async def look(self) -> str:
        """Take longer than allowed."""
        await asyncio.sleep(5)
        return ""


def late(episode: Episode) -> Score:
    time.sleep(0.5)
    return Score(value=1.0)


async def test_what_ran_out_of_its_time_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = await episode(Patient(Script(CALL, "2"), 0.1), limits=Limits(max_wall_s=0.15))
    assert ended_by_clock(ended) == "it was ended by max_wall_s"
    mute = await episode(Patient(Script(CALL), 5), limits=Limits(max_wall_s=0.05))
    assert "its world was overdue: the policy had said nothing" in ended_by_clock(mute)
    told = await episode(Script("[look]", "2"), Slow())
    assert "a tool ran out of its timeout_s" in ended_by_clock(told)
    assert told.episode.metrics["tool_timeouts"] == 1
    assert 0.05 <= told.call_s["call_0"] < 5
    answered = await episode(Script(CALL, "2"))
    unscored = await score_trajectory(answered, Reward(name="late", fn=late), wall_s=0.05)
    assert "reward late on 7-3-0: no result after 0.05 s" in ended_by_clock(unscored)
    failed = await episode(Script("[do world]"), Trouble())
    late_for_more = replace(failed, error=replace(failed.error, overdue=True))
    assert "no time was left to play it again after WorldError" in ended_by_clock(late_for_more)
    monkeypatch.setattr(agent, "CLOSE_WALL_S", 0.05)
    env = Trouble()
    env.hangs_at_close = True
    assert ended_by_clock(await episode(Script("2"), env)) == ""  # the episode was over


async def test_what_the_seed_decides_is_not_the_clocks() -> None:
    answered = await score_trajectory(await episode(Script(CALL, "2")), REWARD, wall_s=5)
    failed = await episode(Script("[do world]"), Trouble())

    def raises(episode: Episode) -> Score:
        raise ValueError("overdue reward ")

    unscored = await score_trajectory(answered, Reward(name="broken", fn=raises), wall_s=5)
    for trajectory in (answered, failed, unscored, await episode(Script(CALL), limits=Limits(max_turns=1))):
        assert ended_by_clock(trajectory) == ""
        require_no_clock([TrajectoryGroup(task=TASK, index=0, trajectories=(trajectory,))])


class Runner:
    """Runs real episodes of a policy that takes longer than max_wall_s."""

    async def run_group(self, request):
        return await run_group(
            request.task,
            CALC,
            Patient(Script(CALL, "2"), 0.1),
            RENDERER,
            REWARD,
            index=request.index,
            group_size=request.group_size,
            trajectory_id=str,
            request_seed=lambda member, turn: 0,
            limits=Limits(max_wall_s=0.15),
            context_length=1024,
        )


async def test_an_exact_collector_refuses_them_and_another_takes_them_as_data() -> None:
    stream = TaskStream(env="calc", level=1, run_seed=0)
    (group,) = await Collector(stream, [Runner()], CollectorSpec(group_size=1)).next_groups(1)
    assert group.trajectories[0].episode.stop_reason == "max_wall_s"
    collector = Collector(stream, [Runner()], CollectorSpec(group_size=1, exact=True))
    with pytest.raises(ClockError, match=r"trajectory 0 depends on the clock: it was ended by max_wall_s"):
        await collector.next_groups(1)
    assert LIMITS.max_wall_s > 1
