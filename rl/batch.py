"""Trajectories become training samples, a batch of them, and a padded layout of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Self

import numpy as np
import torch
from torch import Tensor

from envs.messages import StopReason
from rl.samples import TrainSample, check_shape, trajectory_samples
from rollout.trajectory import Trajectory, TrajectoryGroup

TokenArrays = tuple[np.ndarray, ...]
"""One array (T,) a sample."""

TRUNCATED = frozenset({StopReason.MAX_TURN_TOKENS, StopReason.MAX_TOTAL_TOKENS, StopReason.CONTEXT_LIMIT})
"""Stop reasons of a trajectory that ran out of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Where every sampled token went: num_sampled = num_trained + num_masked + sum(dropped.values()).

    `dropped` counts sampled tokens, and `dropped_trajectories` trajectories, by reason: error (the world
    failed), unscored (no reward), nonfinite_score, uniform_group (all rewards equal). Masked tokens belong to
    trajectories that count in the statistics and are not trained on.
    """

    num_trajectories: int
    num_sampled: int
    num_trained: int
    num_masked: int
    dropped: Mapping[str, int]
    dropped_trajectories: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.num_sampled != self.num_trained + self.num_masked + sum(self.dropped.values()):
            raise ValueError(f"sampled tokens do not add up: {self}")


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
    old_logprobs: TokenArrays | None = None  # of the learner, before the update
    ref_logprobs: TokenArrays | None = None  # of the reference policy
    advantages: TokenArrays | None = None

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
        named = {name: getattr(self, name) for name in ("old_logprobs", "ref_logprobs", "advantages")}
        return {name: arrays for name, arrays in named.items() if arrays is not None}

    @property
    def counts(self) -> LossCounts:
        """This batch's own denominators."""
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

    def micro_batches(self, micro_batch_size: int) -> Iterator[Self]:
        """At most `micro_batch_size` samples of like length each. Their loss takes this batch's `counts`."""
        for rows in rows_of_like_length(self.samples, micro_batch_size):
            yield self._rows(rows)

    def padded(self, *, pad_id: int = 0) -> PaddedLayout:
        """All samples and what has been filled in as tensors."""
        return pad(self.samples, pad_id=pad_id, **self.token_arrays)

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


def rows_of_like_length(samples: Sequence[TrainSample], num_rows: int) -> Iterator[list[int]]:
    """Indices of at most `num_rows` samples at a time, shortest first: one long row would pad all others."""
    order = sorted(range(len(samples)), key=lambda row: len(samples[row].token_ids))
    for start in range(0, len(order), num_rows):
        yield order[start : start + num_rows]


@dataclass(frozen=True, kw_only=True)
class PaddedLayout:
    """B samples as rows of T tokens, padded on the right; log-probs and advantages are 0 at loss_mask 0.

    Example, rows of 3 and 2 tokens, prompt length 1:
        attention_mask = [[1, 1, 1], [1, 1, 0]]
        loss_mask      = [[0, 1, 1], [0, 1, 0]]
        position_ids   = [[0, 1, 2], [0, 1, 2]]
    """

    token_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool
    position_ids: Tensor  # (B, T) int64
    loss_mask: Tensor  # (B, T) bool
    weight: Tensor  # (B,) float32, TrainSample.weight
    rollout_logprobs: Tensor  # (B, T) float32, NaN where the engine gave none
    old_logprobs: Tensor | None = None  # (B, T) float32
    ref_logprobs: Tensor | None = None  # (B, T) float32
    advantages: Tensor | None = None  # (B, T) float32

    def to(self, device: torch.device | str) -> PaddedLayout:
        """The same layout on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in tensors.items() if x is not None})

    def unpad(self, values: Tensor) -> TokenArrays:
        """Row by row the first T_i entries of `values` (B, T), as float32 arrays: the inverse of padding."""
        lengths = self.attention_mask.sum(1).tolist()
        return tuple(row[:n] for row, n in zip(values.detach().float().cpu().numpy(), lengths, strict=True))


def pad(samples: Sequence[TrainSample], *, pad_id: int = 0, **token_arrays: TokenArrays) -> PaddedLayout:
    """The samples as a PaddedLayout, with `old_logprobs`, `ref_logprobs` and `advantages` where given.

    Any `pad_id` in the vocabulary will do: a causal model's real tokens never see what stands to their right.
    """
    lengths = np.array([len(sample.token_ids) for sample in samples], np.int64)
    positions = np.tile(np.arange(lengths.max(initial=0)), (len(samples), 1))
    real = torch.from_numpy(positions < lengths[:, None])
    loss_mask = _padded([sample.loss_mask for sample in samples], real, False, torch.bool)
    floats = {"rollout_logprobs": [sample.rollout_logprobs for sample in samples], **token_arrays}
    return PaddedLayout(
        token_ids=_padded([sample.token_ids for sample in samples], real, pad_id, torch.int64),
        attention_mask=real,
        position_ids=torch.from_numpy(positions),
        loss_mask=loss_mask,
        weight=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        **{
            name: _padded(rows, real, 0.0, torch.float32).masked_fill(~loss_mask, 0.0)
            for name, rows in floats.items()
        },
    )


def _padded(rows: Sequence[np.ndarray], real: Tensor, fill: float, dtype: torch.dtype) -> Tensor:
    """Rows of different length as one tensor (B, T)."""
    out = torch.full(real.shape, fill, dtype=dtype)
    out[real] = torch.from_numpy(np.concatenate([np.zeros(0, bool), *rows])).to(dtype)
    return out


def make_batch(groups: Sequence[TrajectoryGroup]) -> TrainBatch:
    """One sample a leaf of every scored trajectory; each sampled token is trained exactly once.

    A trajectory that errored, has no score or a score that is not finite is in no sample and no statistic,
    and is counted in `accounting` by that reason.
    """
    kept: list[tuple[int, Trajectory]] = []
    dropped, dropped_trajectories = Counter[str](), Counter[str]()
    for group in groups:
        for trajectory in group.trajectories:
            if reason := _unusable(trajectory):
                dropped[reason] += trajectory.num_sampled_tokens
                dropped_trajectories[reason] += 1
            else:
                kept.append((group.index, trajectory))
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
        accounting=Accounting(
            num_trajectories=sum(len(group.trajectories) for group in groups),
            num_sampled=num_trained + dropped.total(),
            num_trained=num_trained,
            num_masked=0,
            dropped=dict(dropped),
            dropped_trajectories=dict(dropped_trajectories),
        ),
    )


def _unusable(trajectory: Trajectory) -> str | None:
    if trajectory.error is not None:
        return "error"
    if trajectory.score.value is None:
        return "unscored"
    return None if isfinite(trajectory.score.value) else "nonfinite_score"


def _check_distinct(what: str, names: Sequence[str | int]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} occurs more than once in the batch; each must be distinct")
