"""Where the run distrusts itself: what must hold before the first step, and in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rl.accounting import accounts_problem
from rl.batch import TrainBatch, make_batch
from rl.breaker import Breaker
from rl.weight_sync import Receiver, Sender, WeightSync
from rollout.outcomes import failures_of, failures_told
from rollout.trajectory import TrajectoryGroup

PERTURBATION = 1e-2
"""Noise of the trial sync, relative to each tensor's RMS.

Far above every tolerance, far below breaking a model.
"""


MAX_MISSING = 0.01
"""Share of trained tokens without a log-prob of the engine above which a run stops.

A few that are NaN are left out and counted; more, and the engine does not say what it sampled from.
"""


RATIO_LIMITS = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
"""|ratio - 1| allowed before the first update, by the learner's dtype.

Scoring and updating do not put the same samples into one batch, and in a narrow dtype another batch rounds
differently (measured on a mixture of experts in bfloat16: 2e-3).
"""


class GateError(RuntimeError):
    """The run refuses to start, or to go on; the message says what was measured and what was allowed."""


class PerturbableLearner(Sender, Protocol):
    async def score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch: ...
    async def perturb(self, scale: float, seed: int) -> None: ...
    async def restore(self) -> None: ...


class ProbeRollouts(Protocol):
    @property
    def runners(self) -> Sequence[Receiver]: ...
    async def probe_groups(self, num_groups: int) -> list[TrajectoryGroup]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """|log-prob of the engine - log-prob of the learner| in nats over `num_tokens` sampled tokens."""

    mean: float
    max: float
    num_tokens: int


def gap_of(batch: TrainBatch) -> Gap:
    """The gap over every trained token of a scored batch. Raises GateError when there is none."""
    if batch.old_logprobs is None:
        raise ValueError("the batch has no old_logprobs; score it first")
    differences = [
        np.abs(sample.rollout_logprobs - old)[sample.loss_mask]
        for sample, old in zip(batch.samples, batch.old_logprobs, strict=True)
    ]
    flat = np.concatenate([np.zeros(0, np.float32), *differences])
    if not flat.size:
        raise GateError("the probe sampled no token that could be compared; look at the trajectories' errors")
    return Gap(mean=float(flat.mean()), max=float(flat.max()), num_tokens=flat.size)


def gap_metrics(batch: TrainBatch) -> dict[str, float]:
    """The gap of a training step, where the loss itself does not measure it."""
    gap = gap_of(batch)
    return {"gap/abs_mean": gap.mean, "gap/abs_max": gap.max}


async def measure_gap(learner: PerturbableLearner, rollouts: ProbeRollouts, *, num_groups: int) -> Gap:
    """Sample real multi-turn trajectories, score them with the learner, and compare."""
    groups = await rollouts.probe_groups(num_groups)
    batch = make_batch(groups)
    if not batch.samples and (failures := failures_of(groups)):
        raise GateError(
            f"the probe of {len(groups)} groups gave no trajectory that could be compared: "
            f"{failures_told(failures)}. Mend what failed: the run does not start"
        )
    return gap_of(await learner.score(batch, frozenset({"old_logprobs"})))


async def prove_engines(
    learner: PerturbableLearner, rollouts: ProbeRollouts, sync: WeightSync, *, num_groups: int, limit: float
) -> tuple[Gap, Gap]:
    """The gap before any sync, and after one sync of weights that all differ from the engine's own.

    A stale tensor is invisible while learner and engine start from one file; so every tensor is perturbed,
    published and measured, then the starting policy is restored and published as version 0.

    Raises:
        GateError: a gap is above `limit`.
        WeightSyncError: a sync did not bring what the learner holds.
    """
    before = await measure_gap(learner, rollouts, num_groups=num_groups)
    _require(
        before, limit, "before any sync", "learner and engine read different weights or compute differently"
    )
    version = sync.version
    await learner.perturb(PERTURBATION, seed=1)
    await sync.publish(learner, rollouts, version=-1)
    after = await measure_gap(learner, rollouts, num_groups=num_groups)
    _require(after, limit, "after a sync of perturbed weights", "the sync does not carry every weight")
    await learner.restore()
    await sync.publish(learner, rollouts, version=version)
    return before, after


def _require(gap: Gap, limit: float, when: str, cause: str) -> None:
    if not gap.max <= limit:
        raise GateError(
            f"the log-prob gap between engine and learner {when} is {gap.max:.2e} at most and "
            f"{gap.mean:.2e} on average over {gap.num_tokens} tokens; the limit is {limit:.1e}: {cause}. "
            "The run does not start. (--engine-dtype and --max-gap set the limit.)"
        )


@dataclass(slots=True, kw_only=True)
class StepGates:
    """What must hold in every step.

    The gap may touch its limit once (single spikes are harmless) but not `patience` steps in a row, nor ten
    times over, and it must be known for all but MAX_MISSING of the tokens. Fewer than `max_skipped_steps`
    steps in a row may have an update that was not applied. Before a run's first update its policy scores the
    batch: the update must compute the same, so that the ratio is 1 and nothing is clipped. Every sampled
    token and trajectory is accounted for (rl/accounting.py), and the world fails fewer episodes than the
    breaker allows (rl/breaker.py).
    """

    gap_limit: float
    ratio_limit: float = RATIO_LIMITS["float32"]
    patience: int = 3
    max_skipped_steps: int = 3
    incidents: str = "incidents"
    breaker: Breaker = field(default_factory=Breaker)
    _above: int = 0
    _skipped: int = 0

    def state(self) -> dict[str, Any]:
        """What the gates remember of the steps before."""
        return {"above": self._above, "skipped": self._skipped, "breaker": self.breaker.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._above, self._skipped = state["above"], state["skipped"]
        if "breaker" in state:  # an older checkpoint has none
            self.breaker.restore(state["breaker"])

    def check_world(self, step: int, groups: Sequence[TrajectoryGroup]) -> None:
        """Raise GateError when the world or the reward failed too many of the episodes, these included."""
        if problem := self.breaker.problem(groups):
            raise GateError(f"step {step}: {problem}")

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Raise GateError when `metrics` of step `step` (from 1) break a rule."""
        if problem := accounts_problem(metrics):
            raise GateError(f"step {step}: {problem}")
        gap = metrics.get("gap/abs_max", 0.0)
        self._above = self._above + 1 if gap > self.gap_limit else 0
        if self._above >= self.patience or gap > 10 * self.gap_limit:
            raise GateError(
                f"step {step}: the log-prob gap between engine and learner is {gap:.2e} (limit "
                f"{self.gap_limit:.1e}, above it for {self._above} step(s)): the engine no longer samples "
                "from the policy that is trained"
            )
        missing = metrics.get("gap/missing_logprob_frac", 0.0)
        if missing > MAX_MISSING:
            raise GateError(
                f"step {step}: {missing:.1%} of the trained tokens have no finite log-prob of the engine (up "
                f"to {MAX_MISSING:.0%} are left out and counted): it must return one for every token that it "
                "samples; look at the log-probs in trajectories.jsonl"
            )
        skipped = metrics.get("optim/skipped_updates", 0.0)
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= self.max_skipped_steps:
            raise GateError(
                f"step {step}: {skipped:.0%} of its updates were left out, their gradients not finite, "
                f"the {self._skipped}. step in a row; the policy is as before. Their batches are kept in "
                f"{self.incidents}: look at the log-probs and advantages there, lower the learning rate, or "
                "use a wider learner dtype"
            )
        # A fixed data set has no policy that sampled it, and its updates measure no such ratio.
        if step == 1 and metrics.get("policy/first_ratio_error", 0.0) > self.ratio_limit:
            raise GateError(
                "step 1: before the first update the ratio of the policy to itself is off 1 by "
                f"{metrics['policy/first_ratio_error']:.2e}; scoring and updating do not compute the same "
                "log-probs (dropout, dtype, temperature or padding)"
            )
