"""A batch as it crosses to the learner's process: a few flat arrays instead of many small ones.

A token costs its id (int32; once where siblings begin alike), the engine's log-prob where it is trained
(float32) and a bit of the mask. What is the same for many tokens in a row, versions, turns, advantages, what
stands outside the mask, is stored as runs. The round trip is exact, bit for bit and dtype for dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from rl.batch import TOKEN_ARRAYS, TrainBatch
from rl.samples import TrainSample
from rl.turns import TurnFacts

SAMPLE_COLUMNS = ("rollout_logprobs", "versions", "turn_ids")
"""Arrays (T,) of every sample that are told apart by the loss mask."""

PackedTurns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""How many turns each trajectory has, and of all of them the rewards and the states."""


@dataclass(frozen=True, slots=True)
class Runs:
    """A flat array, as runs of equal values where that is smaller. `lengths` is None where it is not."""

    values: np.ndarray
    lengths: np.ndarray | None = None  # int32, of each run

    @classmethod
    def of(cls, array: np.ndarray) -> Runs:
        """Equal means equal bits: one NaN is as good as the next only where it is the same one."""
        if not array.size:
            return cls(array)
        bits = array.view(f"i{array.itemsize}")
        starts = np.flatnonzero(np.r_[True, bits[1:] != bits[:-1]])
        if starts.size * (array.itemsize + 4) >= array.nbytes:
            return cls(array)
        return cls(array[starts], np.diff(starts, append=array.size).astype(np.int32))

    def whole(self) -> np.ndarray:
        return self.values if self.lengths is None else np.repeat(self.values, self.lengths)


@dataclass(frozen=True, slots=True)
class Column:
    """One array a sample, all in one, what is under the loss mask apart from what is not.

    `shapes` are those behind the first axis of each sample's; None where all are (T,).
    """

    inside: Runs
    outside: Runs
    shapes: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Column:
        if not arrays:
            return cls(Runs(np.zeros(0)), Runs(np.zeros(0)))
        pairs = list(zip(arrays, masks, strict=True))
        shapes = tuple(array.shape[1:] for array in arrays)
        inside, outside = (
            np.concatenate([array[mask == side].ravel() for array, mask in pairs]) for side in (True, False)
        )
        return cls(Runs.of(inside), Runs.of(outside), shapes if any(shapes) else None)

    def arrays(self, masks: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        inside, outside, taken = self.inside.whole(), self.outside.whole(), [0, 0]
        arrays = []
        for row, mask in enumerate(masks):
            shape = () if self.shapes is None else self.shapes[row]
            array = np.empty((len(mask), *shape), inside.dtype)
            for place, (side, flat) in enumerate(((True, inside), (False, outside))):
                chosen = mask == side
                size = int(chosen.sum()) * int(np.prod(shape, dtype=np.int64))
                part = flat[taken[place] : taken[place] + size]
                array[chosen] = part.reshape(-1, *shape)
                taken[place] += size
            arrays.append(array)
        return tuple(arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """A TrainBatch of S samples as flat arrays; `frame` is the batch without its samples.

    Example, samples [1, 2, 3, 4] and [1, 2, 5], of one group:
        lengths = [4, 3], shared = [0, 2], token_ids = [1, 2, 3, 4, 5]
    """

    frame: TrainBatch
    lengths: np.ndarray  # (S,) int32
    shared: np.ndarray  # (S,) int32, ids that the sample before begins with too
    token_ids: np.ndarray  # int32 (int64 where one needs it), what is not shared
    masks: np.ndarray  # uint8, eight tokens each, of all samples in a row
    columns: dict[str, Column]
    partial_columns: dict[str, tuple[np.ndarray, Column]]  # which samples have it, and of those
    trajectories: np.ndarray  # (S,) int32, place in frame.trajectory_ids or in `strangers`
    strangers: tuple[str, ...]  # ids of samples whose trajectory the frame does not have
    group_ids: np.ndarray  # (S,) int64
    weights: np.ndarray  # (S,) float64
    envs: tuple[str, ...]
    env_ids: np.ndarray  # (S,) int32
    answers: tuple[str | None, ...] | None  # S; None where no sample has one
    turns: PackedTurns | None


def pack(batch: TrainBatch) -> PackedBatch:
    """The batch as flat arrays."""
    samples = batch.samples
    masks = [sample.loss_mask for sample in samples]
    ids = [sample.token_ids for sample in samples]
    shared = [0, *(_common_prefix(a, b) for a, b in pairwise(ids))][: len(ids)]
    tails = _joined([array[start:] for array, start in zip(ids, shared, strict=True)], np.int64)
    is_narrow = not tails.size or (tails.min() >= -(2**31) and tails.max() < 2**31)
    columns = {name: [getattr(sample, name) for sample in samples] for name in SAMPLE_COLUMNS}
    columns |= {name: list(arrays) for name, arrays in batch.token_arrays.items()}
    names = list(dict.fromkeys([*batch.trajectory_ids, *(sample.trajectory_id for sample in samples)]))
    envs = list(dict.fromkeys(sample.env for sample in samples))
    place, env_place = ({name: n for n, name in enumerate(table)} for table in (names, envs))
    answers = tuple(sample.answer for sample in samples)
    return PackedBatch(
        frame=replace(batch, samples=(), turns=None, **dict.fromkeys(TOKEN_ARRAYS)),
        lengths=np.array([len(array) for array in ids], np.int32),
        shared=np.array(shared, np.int32),
        token_ids=tails.astype(np.int32) if is_narrow else tails,
        masks=np.packbits(_joined(masks, np.bool_)),
        columns={name: Column.of(arrays, masks) for name, arrays in columns.items()},
        partial_columns=_partial(samples),
        trajectories=np.array([place[sample.trajectory_id] for sample in samples], np.int32),
        strangers=tuple(names[len(batch.trajectory_ids) :]),
        group_ids=np.array([sample.group_id for sample in samples], np.int64),
        weights=np.array([sample.weight for sample in samples], np.float64),
        envs=tuple(envs),
        env_ids=np.array([env_place[sample.env] for sample in samples], np.int32),
        answers=answers if any(answer is not None for answer in answers) else None,
        turns=_pack_turns(batch.turns),
    )


def unpack(packed: PackedBatch) -> TrainBatch:
    """The batch that was packed."""
    count = len(packed.lengths)
    ends = np.cumsum(packed.lengths)
    flat = np.unpackbits(packed.masks, count=int(packed.lengths.sum())).astype(np.bool_)
    masks = np.split(flat, ends[:-1]) if count else []
    columns = {name: column.arrays(masks) for name, column in packed.columns.items()}
    partial: dict[str, Sequence[Any]] = {
        name: _spread(chosen, column.arrays([masks[row] for row in chosen]), count)
        for name, (chosen, column) in packed.partial_columns.items()
    }
    names = (*packed.frame.trajectory_ids, *packed.strangers)
    ids = _unshared(packed)
    own: dict[str, Sequence[Any]] = {name: columns[name] for name in SAMPLE_COLUMNS}
    samples = tuple(
        TrainSample(
            token_ids=ids[row],
            loss_mask=masks[row],
            trajectory_id=names[packed.trajectories[row]],
            group_id=int(packed.group_ids[row]),
            env=packed.envs[packed.env_ids[row]],
            weight=float(packed.weights[row]),
            answer=None if packed.answers is None else packed.answers[row],
            **{name: arrays[row] for name, arrays in (own | partial).items()},
        )
        for row in range(count)
    )
    given = {name: columns[name] for name in TOKEN_ARRAYS if name in columns}
    return replace(packed.frame, samples=samples, turns=_unpack_turns(packed.turns), **given)


@dataclass(frozen=True, slots=True)
class Crossing:
    """What a batch is sent as: it packs itself as it leaves, and is a TrainBatch again where it arrives."""

    batch: TrainBatch

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (pack(self.batch),)


def crossing(batch: Any) -> Any:
    """A TrainBatch as a Crossing; other kinds of batches as they are."""
    return Crossing(batch) if isinstance(batch, TrainBatch) else batch


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    size = min(len(first), len(second))
    differs = np.flatnonzero(first[:size] != second[:size])
    return int(differs[0]) if differs.size else size


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _unshared(packed: PackedBatch) -> list[np.ndarray]:
    """Each sample's ids, int64."""
    tails, start, ids = packed.token_ids.astype(np.int64), 0, []
    before = tails[:0]
    for length, shared in zip(packed.lengths.tolist(), packed.shared.tolist(), strict=True):
        own = tails[start : start + length - shared]
        before = np.concatenate([before[:shared], own])
        start += length - shared
        ids.append(before)
    return ids


def _partial(samples: Sequence[TrainSample]) -> dict[str, tuple[np.ndarray, Column]]:
    """The arrays that some samples have and others do not."""
    found = {}
    for name in ("kept_ids", "routed_experts"):
        rows = [row for row, sample in enumerate(samples) if getattr(sample, name) is not None]
        if rows:
            masks = [samples[row].loss_mask for row in rows]
            column = Column.of([getattr(samples[row], name) for row in rows], masks)
            found[name] = (np.array(rows, np.int32), column)
    return found


def _spread(rows: np.ndarray, arrays: Sequence[np.ndarray], count: int) -> list[np.ndarray | None]:
    spread: list[np.ndarray | None] = [None] * count
    for row, array in zip(rows.tolist(), arrays, strict=True):
        spread[row] = array
    return spread


def _pack_turns(turns: Sequence[TurnFacts] | None) -> PackedTurns | None:
    if turns is None:
        return None
    counts = np.array([len(facts.rewards) for facts in turns], np.int32)
    rewards = _joined([facts.rewards for facts in turns], np.float64)
    return counts, rewards, _joined([facts.states for facts in turns], np.int64)


def _unpack_turns(packed: PackedTurns | None) -> tuple[TurnFacts, ...] | None:
    if packed is None:
        return None
    counts, rewards, states = packed
    ends = np.cumsum(counts)
    spans = [slice(end - count, end) for count, end in zip(counts.tolist(), ends.tolist(), strict=True)]
    return tuple(TurnFacts(rewards=rewards[span], states=states[span]) for span in spans)
