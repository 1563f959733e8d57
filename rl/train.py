"""The training step, and the loop around it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from rl.batch import TrainBatch, make_batch
from rl.gates import StepGates
from rl.metrics import (
    Metrics,
    MetricSums,
    batch_metrics,
    check_names,
    mean_metrics,
    rollout_metrics,
    staleness_metrics,
    time_metrics,
    world_metrics,
)
from rl.policy_gradient import PolicyGradient
from rl.weight_sync import Receiver, Sender, WeightSync
from rollout.trajectory import TrajectoryGroup


class Rollouts(Protocol):
    """Where groups come from, and the engines that sample them."""

    last_groups: list[TrajectoryGroup]
    sampled_groups: list[TrajectoryGroup]
    num_dropped_groups: int
    num_filled_groups: int
    num_dropped_tokens: int

    @property
    def runners(self) -> Sequence[Receiver]: ...
    async def next_groups(self, num_groups: int) -> list[TrajectoryGroup]: ...
    def take_seconds(self) -> float: ...


class LearnerHandle(Sender, Protocol):
    """A learner, in this process or in another one."""

    async def score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch: ...
    async def update(self, minibatch: Any) -> MetricSums: ...
    async def with_old_logprobs(self, batch: TrainBatch) -> TrainBatch: ...
    def take_seconds(self) -> dict[str, float]: ...


Observer = Callable[[list[TrajectoryGroup], TrainBatch], None]


class TrainStep(Protocol):
    """What one step does; `train_step`, or a sibling of it made of the same pieces."""

    async def __call__(
        self,
        rollouts: Rollouts,
        learner: Any,
        algorithm: Any,
        sync: WeightSync,
        observe: Observer,
        /,
        *,
        num_groups: int,
        num_minibatches: int,
    ) -> Metrics: ...


async def train_step(
    rollouts: Rollouts,
    learner: LearnerHandle,
    algorithm: PolicyGradient,
    sync: WeightSync,
    observe: Observer,
    *,
    num_groups: int,
    num_minibatches: int,
) -> Metrics:
    """One step: sample, score, weigh, update, publish."""
    groups = await rollouts.next_groups(num_groups)  # o_1..o_G ~ pi_old(. | q), scored r_1..r_G
    batch = make_batch(groups)
    batch = await learner.score(batch, algorithm.needs_for(num_minibatches))  # log pi_old, log pi_ref
    batch = algorithm.assign_advantages(batch)  # A_t
    updates = [await learner.update(minibatch) for minibatch in batch.minibatches(num_minibatches)]
    batch = await learner.with_old_logprobs(batch)  # log pi_old, where the only update made it
    synced = await sync.publish(learner, rollouts)  # pi_old <- pi_theta
    observe(groups, batch)
    return rollout_metrics(groups) | batch_metrics(batch) | mean_metrics(updates) | synced


async def train(
    rollouts: Rollouts,
    learner: LearnerHandle,
    algorithm: Any,
    sync: WeightSync,
    observe: Observer,
    *,
    take_step: TrainStep = train_step,
    num_steps: int,
    num_groups: int,
    num_minibatches: int,
    first_step: int = 1,
    gates: StepGates,
    after_step: Callable[[int, Metrics, Any], Awaitable[bool]],
) -> int:
    """Steps `first_step` to `num_steps`; every metric is defined, every gate checked, the step then reported.

    `algorithm` is what a run steps with (Objective.start); `after_step` gets it as it is for the next step.

    Returns the number of the last step: an earlier one where `after_step` says that it was enough.

    Raises:
        GateError: the run's own numbers say that it is not learning from what it sampled.
    """
    for step in range(first_step, num_steps + 1):
        started = time.monotonic()
        metrics = await take_step(
            rollouts,
            learner,
            algorithm,
            sync,
            observe,
            num_groups=num_groups,
            num_minibatches=num_minibatches,
        )
        spent = learner.take_seconds()
        metrics |= spent
        metrics |= time_metrics(
            rollouts.last_groups,
            rollout_s=rollouts.take_seconds(),
            train_s=sum(spent.values()),
            sync_s=metrics["sync/seconds"],
            total_s=time.monotonic() - started,
        )
        # The groups were sampled for the update that led to sync.version.
        metrics |= staleness_metrics(rollouts.last_groups, sync.version - 1)
        metrics["rollout/dropped_groups"] = float(rollouts.num_dropped_groups)
        metrics["rollout/filled_groups"] = float(rollouts.num_filled_groups)
        metrics["rollout/dropped_tokens"] = float(rollouts.num_dropped_tokens)
        metrics |= world_metrics(rollouts.sampled_groups, rollouts.last_groups)
        check_names(metrics)
        gates.check_world(step, rollouts.sampled_groups)
        gates.check(step, metrics)
        algorithm = algorithm.after_step(metrics)
        if await after_step(step, metrics, algorithm):
            return step
    return num_steps
