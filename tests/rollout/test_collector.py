"""The collector.

Which groups come back is a function of stream, cursor and policy, never of who was faster.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason
from envs.policy import SamplingFilters
from envs.splits import Split
from rollout.collector import Collector, CollectorSpec, GroupRequest, NoSignalError
from rollout.task_stream import TaskStream
from rollout.trajectory import Trajectory, TrajectoryError, TrajectoryGroup

STREAM = TaskStream(env="calc", level=1, run_seed=3)


@dataclass
class ScriptedRunner:
    """Answers requests after a random wait; the rewards of a group are a function of its index."""

    name: str = "runner"
    jitter: random.Random = field(default_factory=lambda: random.Random(0))
    uniform_every: int = 0
    running: int = 0
    most_running: int = 0
    seen: list[int] = field(default_factory=list)

    def is_uniform(self, index: int) -> bool:
        return bool(self.uniform_every) and index % self.uniform_every == 0

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.seen.append(request.index)
        await asyncio.sleep(self.jitter.random() / 100)
        self.running -= 1
        uniform = self.is_uniform(request.index)
        return TrajectoryGroup(
            task=request.task,
            index=request.index,
            trajectories=tuple(
                Trajectory(
                    id=f"{request.step}-{request.index}-{member}",
                    episode=Episode(task=request.task, transcript=(), stop_reason=StopReason.ANSWERED),
                    turns=(),
                    score=Score(value=0.0 if uniform else float(member), success=0.5),
                )
                for member in range(request.group_size)
            ),
        )


class OneInFour(ScriptedRunner):
    """Only the tasks 1, 5, 9, ... have a signal."""

    def is_uniform(self, index: int) -> bool:
        return index % 4 != 1


def collector(runners: list[ScriptedRunner], **fields: object) -> Collector:
    return Collector(STREAM, runners, CollectorSpec(**({"group_size": 2} | fields)))


async def test_groups_come_back_in_stream_order_whoever_is_faster() -> None:
    for seed in range(5):
        runners = [ScriptedRunner(jitter=random.Random(seed * 10 + i)) for i in range(1 + seed % 3)]
        collected = collector(runners)
        first, second = await collected.next_groups(6), await collected.next_groups(4)
        assert [group.index for group in first + second] == list(range(10))
        assert [group.task for group in first] == STREAM.slice(0, 6)
        assert collected.cursor == 10


async def test_dynamic_sampling_replaces_uniform_groups_by_the_next_tasks() -> None:
    # Every third group (0, 3, 6, ...) is uniform: the first four with a signal are 1, 2, 4, 5.
    collected = collector([ScriptedRunner(uniform_every=3)], dynamic_sampling=True)
    assert [group.index for group in await collected.next_groups(4)] == [1, 2, 4, 5]
    assert (collected.cursor, collected.num_dropped_groups) == (6, 2)
    sampled = sum(t.num_sampled_tokens for group in collected.last_groups for t in group.trajectories)
    assert collected.num_dropped_tokens * 2 == sampled  # two dropped, four kept, all of one length
    assert [group.index for group in await collected.next_groups(2)] == [7, 8]


async def test_dynamic_sampling_without_any_signal_stops_and_says_so() -> None:
    collected = collector([ScriptedRunner(uniform_every=1)], dynamic_sampling=True, max_draws_per_group=3)
    with pytest.raises(NoSignalError, match="12 tasks gave 0 of 4 groups"):
        await collected.next_groups(4)
    assert collected.cursor == 0  # nothing was consumed


async def test_dynamic_sampling_fills_up_with_the_latest_uniform_groups_when_told_to() -> None:
    # Of the tasks 0 to 5 only 1, 2, 4, 5 have a signal; six draws for six groups, so 0 and 3 fill up.
    options = {"dynamic_sampling": True, "max_draws_per_group": 1, "at_max_draws": "fill"}
    collected = collector([ScriptedRunner(uniform_every=3)], **options)
    assert [group.index for group in await collected.next_groups(6)] == [0, 1, 2, 3, 4, 5]
    assert (collected.cursor, collected.num_dropped_groups, collected.num_filled_groups) == (6, 0, 2)
    assert collected.num_dropped_tokens == 0
    # With two draws a group: 6 and 9 are passed over for 7, 8, 10 and 11.
    collected = collector([ScriptedRunner(uniform_every=3)], **{**options, "max_draws_per_group": 2})
    assert [group.index for group in await collected.next_groups(4)] == [1, 2, 4, 5]
    assert (collected.num_dropped_groups, collected.num_filled_groups) == (2, 0)
    # The latest ones: three in four tasks are uniform, and of 0, 2, 3, 4, 6 and 7 the last two fill up.
    collected = collector([OneInFour()], **{**options, "max_draws_per_group": 2})
    assert [group.index for group in await collected.next_groups(4)] == [1, 5, 6, 7]
    with pytest.raises(NoSignalError, match="2 tasks gave 0 of 2 groups"):
        await collector([ScriptedRunner(uniform_every=1)], **options).next_groups(2)
    with pytest.raises(NoSignalError, match=r"4 of 6 groups.*--at-max-draws fill"):
        await collector([ScriptedRunner(uniform_every=3)], **{**options, "at_max_draws": "stop"}).next_groups(
            6
        )


async def test_every_request_of_training_has_the_filters_and_evaluation_has_none() -> None:
    asked: list[GroupRequest] = []

    class Notes(ScriptedRunner):
        async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
            asked.append(request)
            return await super().run_group(request)

    filters = SamplingFilters(top_p=0.9, top_k=5)
    collected = collector([Notes()], filters=filters)
    await collected.next_groups(2)
    await collected.probe_groups(1)
    await collected.evaluate(STREAM.slice(0, 2), temperature=1.0)
    assert [request.filters for request in asked] == [filters] * 3 + [SamplingFilters()] * 2


async def test_no_runner_gets_more_groups_than_it_can_hold() -> None:
    runners = [ScriptedRunner(), ScriptedRunner()]
    await collector(runners, max_groups_per_runner=3).next_groups(20)
    assert [runner.most_running for runner in runners] == [3, 3]
    assert sorted(runners[0].seen + runners[1].seen) == list(range(20))


async def test_a_wait_ends_at_its_deadline_and_says_how_far_it_got() -> None:
    class Hangs(ScriptedRunner):
        async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
            if request.index == 2:
                await asyncio.sleep(60)
            return await super().run_group(request)

    with pytest.raises(TimeoutError, match=r"waited 0\.2 s for 4 groups; 3 were done"):
        await collector([Hangs()], deadline_s=0.2).next_groups(4)


async def test_shuffled_rewards_are_the_same_rewards_dealt_anew() -> None:
    plain = await collector([ScriptedRunner()], group_size=4).next_groups(4)
    shuffled = await collector([ScriptedRunner()], group_size=4, shuffle_rewards=True).next_groups(4)
    again = await collector([ScriptedRunner()], group_size=4, shuffle_rewards=True).next_groups(4)

    def rewards(groups: list[TrajectoryGroup]) -> list[float]:
        return [reward for group in groups for reward in group.rewards]

    assert rewards(shuffled) != rewards(plain)
    assert sorted(rewards(shuffled)) == sorted(rewards(plain))
    assert rewards(shuffled) == rewards(again)
    assert {t.score.success for group in shuffled for t in group.trajectories} == {0.5}


async def test_probes_and_evaluation_leave_the_cursor_alone() -> None:
    held_out = TaskStream(env="calc", level=1, run_seed=3, split=Split.HELD_OUT)
    collected = collector([ScriptedRunner()])
    await collected.probe_groups(2)
    groups = await collected.evaluate(held_out.slice(0, 5), temperature=1.0)
    assert [len(group.trajectories) for group in groups] == [1] * 5
    more = await collected.evaluate(held_out.slice(0, 5), temperature=1.0, num_samples=3)
    assert [len(group.trajectories) for group in more] == [3] * 5
    assert collected.cursor == 0


def test_a_task_is_a_pure_function_of_seed_and_index() -> None:
    assert STREAM.slice(5, 3) == [STREAM[5], STREAM[6], STREAM[7]]
    assert STREAM[5] == TaskStream(env="calc", level=1, run_seed=3)[5]
    assert STREAM[5] != TaskStream(env="calc", level=1, run_seed=4)[5]


def test_a_stream_of_so_many_tasks_repeats_them_in_another_order_each_time() -> None:
    stream = TaskStream(env="calc", level=1, run_seed=3, num_tasks=20)
    first, second = stream.slice(0, 20), stream.slice(20, 20)
    ids = [task.id for task in STREAM.slice(0, 20)]
    assert sorted(task.id for task in first) == sorted(task.id for task in second) == sorted(ids)
    assert len({tuple(ids), tuple(task.id for task in first), tuple(task.id for task in second)}) == 3
    assert stream[27] == TaskStream(env="calc", level=1, run_seed=3, num_tasks=20)[27]
    with pytest.raises(IndexError, match="task index -1"):
        STREAM[-1]


def test_staleness_above_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="only 0"):
        collector([ScriptedRunner()], max_staleness=1)


async def test_a_group_with_too_few_scored_members_has_no_signal_and_a_failing_world_is_named() -> None:
    class Spoils(ScriptedRunner):
        async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
            group = await super().run_group(request)
            if request.index % 2:
                return group
            died = TrajectoryError(kind="SandboxError", message="it died")
            first, *others = group.trajectories
            spoiled = (replace(t, error=died, score=Score(value=None)) for t in others)
            return replace(group, trajectories=(first, *spoiled))

    options = {"dynamic_sampling": True, "group_size": 3}
    collected = collector([Spoils()], **options)
    assert [group.index for group in await collected.next_groups(2)] == [1, 3]
    assert [group.index for group in collected.sampled_groups] == [0, 1, 2, 3]
    with pytest.raises(NoSignalError, match=r"Of their episodes 8 failed: SandboxError 8; the latest: traj"):
        await collector([Spoils()], **options, min_group=4, max_draws_per_group=4).next_groups(2)
