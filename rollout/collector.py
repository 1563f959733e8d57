"""next_groups: from a task stream to the groups that one training step consumes."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, Protocol, TypeVar

from envs.messages import Task
from envs.policy import NO_FILTERS, SamplingFilters
from rewards.base import shuffle_scores
from rollout.clock import require_no_clock
from rollout.engine_spec import POLICY
from rollout.outcomes import failures_of, failures_told
from rollout.task_stream import TaskStream
from rollout.trajectory import TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """One group to run. (run seed, step, index, member, turn) determine every random draw in it.

    `adapter` names which of an engine's adapters plays; BASE: its model alone.
    """

    task: Task
    index: int
    step: int
    group_size: int
    temperature: float
    filters: SamplingFilters = NO_FILTERS
    adapter: str = POLICY


class GroupRunner(Protocol):
    """Who runs groups: a Ray rollout worker, or an engine of this process."""

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        """Run all members of one group to their end.

        A failed member is data of the group, not an exception.
        """
        ...


PROBE_INDEX = 2**40
"""Task indices from here on are for measurements: no training run is that long."""


Runner = TypeVar("Runner", bound=GroupRunner)


class NoSignalError(RuntimeError):
    """Too many groups in a row were dropped: there is nothing to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSpec:
    """How groups are collected.

    `dynamic_sampling` is dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups whose rewards are
    all equal are replaced by the next tasks of the stream, at most `max_draws_per_group` tasks for one kept
    group. When these are used up, `at_max_draws` says what becomes of the step: stop, or fill it up with the
    latest of the uniform groups, as long as one group has unequal rewards. A group with fewer than
    `min_group` scored members has no signal either. `max_staleness` 0 is synchronous:
    every group is sampled by the version that the learner holds.
    `max_groups_per_runner` bounds what one runner works on at a time. With `exact` a trajectory that the
    clock ended raises ClockError: no seed would bring it back. `adapter` is whom an engine that serves
    several lets play: runs can share it, one adapter each, once each has published (rl/weight_sync.py). A
    judge that is the policy itself (rewards/judge_file.py) is POLICY all the same.
    """

    group_size: int
    temperature: float = 1.0
    filters: SamplingFilters = NO_FILTERS
    run_seed: int = 0
    dynamic_sampling: bool = False
    min_group: int = 2
    max_draws_per_group: int = 8
    at_max_draws: Literal["stop", "fill"] = "stop"
    shuffle_rewards: bool = False
    max_staleness: int = 0
    max_groups_per_runner: int = 64
    exact: bool = False
    deadline_s: float = 300.0
    adapter: str = POLICY


class Collector(Generic[Runner]):
    """Draws tasks in stream order and hands whole groups to runners, never more than they can hold.

    The groups that come back depend on (stream, cursor, step) and the policy only, not on which runner was
    faster: they are considered in the order of their index.
    """

    def __init__(self, stream: TaskStream, runners: Sequence[Runner], spec: CollectorSpec) -> None:
        if not runners:
            raise ValueError("a collector needs at least one runner; 0 given")
        if spec.max_staleness != 0:
            raise ValueError(f"max_staleness {spec.max_staleness} given; only 0 (synchronous) is offered yet")
        self.stream = stream
        self.runners = runners
        self.spec = spec
        self.cursor = 0  # committed: index of the next task that no consumed group has used
        self.step = 0
        self.num_dropped_groups = 0  # of the last call
        self.num_filled_groups = 0  # of the last call
        self.num_dropped_tokens = 0  # sampled in the dropped groups of the last call
        self.last_groups: list[TrajectoryGroup] = []
        self.sampled_groups: list[TrajectoryGroup] = []  # of the last call, dropped ones too, in stream order
        self._seconds = 0.0

    async def next_groups(self, num_groups: int) -> list[TrajectoryGroup]:
        """The groups of the next step, in stream order.

        Raises:
            TimeoutError: the groups were not done within the deadline; the message says how many were.
            NoSignalError: dynamic sampling used up its draws.
        """
        started = time.monotonic()
        kept: list[TrajectoryGroup] = []
        uniform: list[TrajectoryGroup] = []
        sampled: list[TrajectoryGroup] = []
        index = self.cursor
        budget = num_groups * (self.spec.max_draws_per_group if self.spec.dynamic_sampling else 1)
        while len(kept) < num_groups:
            count = min(num_groups - len(kept), self.cursor + budget - index)
            if count == 0:
                break
            requests = [self._request(index + i, self.step, self.spec.group_size) for i in range(count)]
            groups = await self.run(requests)
            sampled += groups
            for group in groups:
                (kept if self._has_signal(group) else uniform).append(group)
            index += count
        self.num_filled_groups = missing = num_groups - len(kept)
        if missing:
            if self.spec.at_max_draws == "stop" or not kept:
                fill = "" if kept == [] else "fill the step up (--at-max-draws fill), "
                failures = failures_of(sampled)
                told = f". Of their episodes {len(failures)} failed: " if failures else ""
                raise NoSignalError(
                    f"step {self.step}: {index - self.cursor} tasks gave {len(kept)} of {num_groups} groups "
                    "with unequal rewards; the tasks are too hard or too easy for this policy: change the "
                    f"level, raise --max-draws-per-group, {fill}or use an algorithm that keeps uniform groups"
                    f"{told}{failures_told(failures)}"
                )
            kept = sorted([*kept, *uniform[-missing:]], key=lambda group: group.index)
        dropped = uniform[: len(uniform) - missing]
        self.sampled_groups = sampled
        self.num_dropped_tokens = sum(t.num_spent_tokens for group in dropped for t in group.trajectories)
        self.num_dropped_groups = index - self.cursor - num_groups
        self.cursor = index
        self.step += 1
        self._seconds += time.monotonic() - started
        self.last_groups = self._shuffled(kept) if self.spec.shuffle_rewards else kept
        return self.last_groups

    async def probe_groups(self, num_groups: int) -> list[TrajectoryGroup]:
        """Groups from tasks that training never reaches; the cursor stays where it is."""
        requests = [self._request(PROBE_INDEX + i, -1, self.spec.group_size) for i in range(num_groups)]
        return await self.run(requests)

    async def evaluate(
        self,
        tasks: Sequence[Task],
        *,
        temperature: float,
        num_samples: int = 1,
        filters: SamplingFilters = NO_FILTERS,
        adapter: str | None = None,
    ) -> list[TrajectoryGroup]:
        """`num_samples` trajectories for each task, the spec's adapter's where none is named.

        The cursor stays where it is.

        Two policies evaluated so meet the same tasks and random streams, and sample m of a task draws from
        the same stream however many there are.
        """
        requests = [
            GroupRequest(
                task=task,
                index=index,
                step=-2,
                group_size=num_samples,
                temperature=temperature,
                filters=filters,
                adapter=self.spec.adapter if adapter is None else adapter,
            )
            for index, task in enumerate(tasks)
        ]
        return await self.run(requests)

    def take_seconds(self) -> float:
        """Wall seconds of next_groups since last asked."""
        taken, self._seconds = self._seconds, 0.0
        return taken

    async def run(self, requests: Sequence[GroupRequest]) -> list[TrajectoryGroup]:
        """Run any requests, spread evenly over the runners, bounded; results in the order of the requests."""
        slots = [asyncio.Semaphore(self.spec.max_groups_per_runner) for _ in self.runners]
        turns = itertools.cycle(zip(self.runners, slots, strict=True))
        tasks = [
            asyncio.ensure_future(_bounded(slot, runner.run_group, request))
            for request, (runner, slot) in zip(requests, turns, strict=False)  # the runners cycle
        ]
        try:
            done, pending = await asyncio.wait(
                tasks, timeout=self.spec.deadline_s, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()  # raises what a runner raised
            if pending:
                raise TimeoutError(
                    f"the collector waited {self.spec.deadline_s:g} s for {len(tasks)} groups; {len(done)} "
                    "were done. An engine hangs, or the deadline is too short for this model: raise "
                    "--group-deadline-s"
                )
            groups = [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
        if self.spec.exact:
            require_no_clock(groups)
        return groups

    def _request(self, index: int, step: int, group_size: int) -> GroupRequest:
        return GroupRequest(
            task=self.stream[index],
            index=index,
            step=step,
            group_size=group_size,
            temperature=self.spec.temperature,
            filters=self.spec.filters,
            adapter=self.spec.adapter,
        )

    def _has_signal(self, group: TrajectoryGroup) -> bool:
        if not self.spec.dynamic_sampling:
            return True
        rewards = group.rewards
        return len(rewards) >= max(2, self.spec.min_group) and max(rewards) - min(rewards) > 1e-6

    def _shuffled(self, groups: list[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The control experiment: the same rewards, dealt at random within the batch."""
        scores = [t.score for group in groups for t in group.trajectories]
        dealt = iter(shuffle_scores(scores, random.Random(f"{self.spec.run_seed}/{self.step}")))
        return [
            replace(group, trajectories=tuple(replace(t, score=next(dealt)) for t in group.trajectories))
            for group in groups
        ]


async def _bounded(
    slot: asyncio.Semaphore,
    run_group: Callable[[GroupRequest], Awaitable[TrajectoryGroup]],
    request: GroupRequest,
) -> TrajectoryGroup:
    async with slot:
        return await run_group(request)
