"""Trajectories become training samples, and a batch of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Self

import numpy as np

from envs.messages import StopReason
from rl.accounting import RETRIED, Accounting
from rl.filters import episode_penalty
from rl.layout import PaddedLayout, TokenArrays, pad
from rl.samples import TrainSample, by_turn, check_shape, trajectory_samples
from rl.turns import TurnFacts
from rollout.outcomes import drop_reason
from rollout.trajectory import Trajectory, TrajectoryGroup

TOKEN_ARRAYS = ("old_logprobs", "ref_logprobs", "teacher_logprobs", "old_values", "advantages", "returns")
"""The optional arrays of a batch, filled in one after the other."""

TRUNCATED = frozenset({StopReason.MAX_TURN_TOKENS, StopReason.MAX_TOTAL_TOKENS, StopReason.CONTEXT_LIMIT})
"""Stop reasons of a trajectory that ran out of tokens."""


@dataclass(frozen=True, slots=True)
class LossCounts:
    """Denominators of one optimizer step, over all its micro-batches and ranks.

    `num_tokens` with loss_mask 1; `num_sequences` trajectories with at least one of them.
    """

    num_tokens: int
    num_sequences: int


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """Samples, and the N scored trajectories that they come from (one without a sampled token has no sample).

    The optional arrays are one float32 array (T,) a sample, None until they are filled in with `replace`.
    """

    samples: tuple[TrainSample, ...]
    trajectory_ids: tuple[str, ...]
    group_ids: np.ndarray  # (N,) int64
    rewards: np.ndarray  # (N,) float64
    lengths: np.ndarray  # (N,) int64, sampled tokens
    truncated: np.ndarray  # (N,) bool, ran out of tokens
    accounting: Accounting
    penalties: np.ndarray | None = None  # (N,) float64, of GRPO-RoC; None where no episode is known
    turns: tuple[TurnFacts, ...] | None = None  # N, for credit by turn; None where no turn is known
    task_ids: tuple[str, ...] | None = None  # N, for baselines by prompt
    trackers: np.ndarray | None = None  # (N, 2) float64, α and β of each prompt's BetaTracker (rl/spo.py)
    reward_parts: Mapping[str, np.ndarray] | None = None  # (N,) float64 each, those that every score has
    facts: Mapping[str, float] = field(default_factory=dict)  # metrics of how it was put together
    old_logprobs: TokenArrays | None = None  # of the learner, before the update
    ref_logprobs: TokenArrays | None = None  # of the reference policy
    teacher_logprobs: TokenArrays | None = None  # of the teacher
    old_values: TokenArrays | None = None  # of the critic, before the update
    advantages: TokenArrays | None = None
    returns: TokenArrays | None = None  # what the critic learns
    totals: LossCounts | None = None  # of the optimizer step that this is one rank's part of; None: all of it

    def __post_init__(self) -> None:
        for name in ("group_ids", "rewards", "lengths", "truncated"):
            check_shape(f"TrainBatch.{name}", getattr(self, name), len(self.trajectory_ids))
        for name, arrays in self.token_arrays.items():
            if len(arrays) != len(self.samples):
                raise ValueError(
                    f"TrainBatch.{name} has {len(arrays)} arrays for {len(self.samples)} samples"
                )
            for sample, array in zip(self.samples, arrays, strict=True):
                check_shape(f"TrainBatch.{name} of {sample.trajectory_id}", array, len(sample.token_ids))

    @property
    def token_arrays(self) -> dict[str, TokenArrays]:
        """The optional arrays that are there."""
        named = {name: getattr(self, name) for name in TOKEN_ARRAYS}
        return {name: arrays for name, arrays in named.items() if arrays is not None}

    @property
    def rollout_logprobs(self) -> TokenArrays:
        """The engine's log-probs, one array (T,) a sample."""
        return tuple(sample.rollout_logprobs for sample in self.samples)

    @property
    def counts(self) -> LossCounts:
        """The denominators of this batch's loss: its own, or those of the whole that it is a part of."""
        if self.totals is not None:
            return self.totals
        trained = [sample for sample in self.samples if sample.loss_mask.any()]
        return LossCounts(
            num_tokens=sum(int(sample.loss_mask.sum()) for sample in trained),
            num_sequences=len({sample.trajectory_id for sample in trained}),
        )

    def keep(self, kept: np.ndarray) -> Self:
        """The trajectories where kept (N,) is true, with their samples, in order."""
        ids = tuple(name for name, keep in zip(self.trajectory_ids, kept, strict=True) if keep)
        known = frozenset(ids)
        chosen = [index for index, sample in enumerate(self.samples) if sample.trajectory_id in known]
        return replace(
            self._rows(chosen),
            trajectory_ids=ids,
            group_ids=self.group_ids[kept],
            rewards=self.rewards[kept],
            lengths=self.lengths[kept],
            truncated=self.truncated[kept],
            penalties=None if self.penalties is None else self.penalties[kept],
            turns=None if self.turns is None else tuple(compress(self.turns, kept)),
            task_ids=None if self.task_ids is None else tuple(compress(self.task_ids, kept)),
            trackers=None if self.trackers is None else self.trackers[kept],
            reward_parts=None
            if self.reward_parts is None
            else {name: values[kept] for name, values in self.reward_parts.items()},
        )

    def drop(self, dropped: np.ndarray, *, reason: str) -> Self:
        """Without the trajectories where dropped (N,) is true: in no statistic, counted under `reason`."""
        rest = self.keep(~dropped)
        count, tokens = int(dropped.sum()), int(self.lengths[dropped].sum())
        old = self.accounting
        accounting = replace(
            old,
            num_trained=old.num_trained - tokens,
            dropped={**old.dropped, reason: tokens} if count else old.dropped,
            dropped_trajectories={**old.dropped_trajectories, reason: count}
            if count
            else old.dropped_trajectories,
        )
        return replace(rest, accounting=accounting)

    def mask(self, masked: np.ndarray) -> Self:
        """Without the samples of the trajectories where masked (N,) is true: they stay in the statistics."""
        names = {name for name, is_masked in zip(self.trajectory_ids, masked, strict=True) if is_masked}
        rows = [row for row, sample in enumerate(self.samples) if sample.trajectory_id not in names]
        tokens, old = int(self.lengths[masked].sum()), self.accounting
        accounting = replace(old, num_trained=old.num_trained - tokens, num_masked=old.num_masked + tokens)
        return replace(self._rows(rows), accounting=accounting)

    def by_turn(self) -> Self:
        """Every turn a sample of its own (rl/samples.py, by_turn); trajectories and their weight stay."""
        parts = [(row, part) for row, sample in enumerate(self.samples) for part in by_turn(sample)]
        arrays = {
            name: tuple(values[row][: len(part.token_ids)] for row, part in parts)
            for name, values in self.token_arrays.items()
        }
        return replace(self, samples=tuple(part for _, part in parts), **arrays)

    def minibatches(self, num_minibatches: int) -> list[Self]:
        """One batch per optimizer update: consecutive trajectories, each with all its samples.

        Where dropped trajectories leave a number that does not divide, sizes differ by at most one. The
        number that was collected must divide: otherwise the configuration is wrong.
        """
        collected = self.accounting.num_trajectories
        if num_minibatches < 1 or collected % num_minibatches:
            raise ValueError(
                f"num_minibatches = {num_minibatches} does not divide the {collected} collected trajectories;"
                " choose a divisor of num_groups x group_size"
            )
        owner = np.arange(len(self.trajectory_ids)) * num_minibatches // max(len(self.trajectory_ids), 1)
        return [self.keep(owner == index) for index in range(num_minibatches)]

    def micro_batches(self, passes: Sequence[Sequence[int]]) -> Iterator[Self]:
        """The samples of each pass (rl/packing.py). Their loss takes this batch's `counts`."""
        for rows in passes:
            yield self._rows(rows)

    def split(self, parts: Sequence[Sequence[int]]) -> list[Self]:
        """The samples at each of `parts`, one batch each, with the denominators of this one."""
        return [replace(self._rows(rows), totals=self.counts) for rows in parts]

    def padded(self, *, pad_id: int = 0, layout: str = "padded") -> PaddedLayout:
        """All samples and what has been filled in as tensors; `layout` as in rl/layout.py, pad."""
        return pad(self.samples, pad_id=pad_id, layout=layout, **self.token_arrays)

    def trajectory_sums(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Σ over each trajectory's trained tokens of `values`, one array (T,) a sample: float64 (N,).

        A token whose value is not finite is left out.
        """
        sums = dict.fromkeys(self.trajectory_ids, 0.0)
        for sample, array in zip(self.samples, values, strict=True):
            known = sample.loss_mask & np.isfinite(array)
            sums[sample.trajectory_id] += float(np.sum(array, where=known, dtype=np.float64))
        return np.array(list(sums.values()), np.float64)

    def _rows(self, rows: Sequence[int]) -> Self:
        """The samples at `rows`; the trajectories are untouched."""
        arrays = {name: tuple(values[row] for row in rows) for name, values in self.token_arrays.items()}
        return replace(self, samples=tuple(self.samples[row] for row in rows), **arrays)


def make_batch(groups: Sequence[TrajectoryGroup]) -> TrainBatch:
    """One sample a leaf of every scored trajectory; each sampled token is trained exactly once.

    A trajectory that errored, has no score or a score that is not finite is in no sample and no statistic,
    and is counted in `accounting` by that reason; so are the earlier attempts at one.
    """
    kept: list[tuple[int, Trajectory]] = []
    task_ids: list[str] = []
    dropped, dropped_trajectories = Counter[str](), Counter[str]()
    for group in groups:
        for trajectory in group.trajectories:
            for attempt in trajectory.attempts:
                dropped[RETRIED] += attempt.num_sampled_tokens
                dropped_trajectories[RETRIED] += 1
            if reason := drop_reason(trajectory):
                dropped[reason] += trajectory.num_sampled_tokens
                dropped_trajectories[reason] += 1
            else:
                kept.append((group.index, trajectory))
                task_ids.append(group.task.id)
    _check_distinct("trajectory id", [t.id for group in groups for t in group.trajectories])
    _check_distinct("group index", [group.index for group in groups])
    num_trained = sum(trajectory.num_sampled_tokens for _, trajectory in kept)
    return TrainBatch(
        samples=tuple(
            sample for index, trajectory in kept for sample in trajectory_samples(trajectory, index)
        ),
        trajectory_ids=tuple(trajectory.id for _, trajectory in kept),
        group_ids=np.array([index for index, _ in kept], np.int64),
        rewards=np.array([trajectory.score.value for _, trajectory in kept], np.float64),
        lengths=np.array([trajectory.num_sampled_tokens for _, trajectory in kept], np.int64),
        truncated=np.array([trajectory.episode.stop_reason in TRUNCATED for _, trajectory in kept], np.bool_),
        penalties=np.array([episode_penalty(trajectory.episode) for _, trajectory in kept], np.float64),
        task_ids=tuple(task_ids),
        turns=tuple(TurnFacts.of(trajectory) for _, trajectory in kept),
        reward_parts=_common_parts([trajectory.score.parts for _, trajectory in kept]),
        accounting=Accounting(
            num_trajectories=sum(len(group.trajectories) for group in groups),
            num_sampled=sum(t.num_spent_tokens for group in groups for t in group.trajectories),
            num_trained=num_trained,
            num_masked=0,
            dropped=dict(dropped),
            dropped_trajectories=dict(dropped_trajectories),
        ),
    )


def _common_parts(scores: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The parts that every score has, in the order of the first."""
    names = [name for name in (scores[0] if scores else {}) if all(name in parts for parts in scores)]
    return {name: np.array([parts[name] for parts in scores], np.float64) for name in names}


def _check_distinct(what: str, names: Sequence[str | int]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} occurs more than once in the batch; each must be distinct")
