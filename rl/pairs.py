"""Pairs of a better and a worse trajectory of one task, from which preferences are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rl.batch import TrainBatch
from rl.metrics import Metrics

EQUAL = 1e-6
"""Rewards that are closer than this, relative to their size, express no preference."""


@dataclass(frozen=True, slots=True)
class PairTotals:
    """Of the optimizer step that a part of its pairs belongs to: their number, and KTO's reference point."""

    num_pairs: int
    z0: float


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """P pairs of trajectory ids, (chosen, rejected), and the scored batch that holds both sides of each."""

    batch: TrainBatch
    pairs: tuple[tuple[str, str], ...]
    metrics: Metrics
    totals: PairTotals | None = None  # of the whole that this is one rank's part of; None: it is the whole

    @property
    def num_pairs(self) -> int:
        """The denominator of this batch's loss."""
        return len(self.pairs) if self.totals is None else self.totals.num_pairs

    def minibatches(self, num_minibatches: int) -> list[Self]:
        """One batch of whole pairs per optimizer update, in order; sizes differ by at most one."""
        owner = np.arange(len(self.pairs)) * num_minibatches // max(len(self.pairs), 1)
        return [self.of(np.flatnonzero(owner == index)) for index in range(num_minibatches)]

    def micro_batches(self, num_pairs: int) -> Iterator[Self]:
        """At most `num_pairs` pairs each: those of like length together, shortest first."""
        length = dict(zip(self.batch.trajectory_ids, self.batch.lengths.tolist(), strict=True))
        order = sorted(
            range(len(self.pairs)), key=lambda pair: max(length[name] for name in self.pairs[pair])
        )
        for start in range(0, len(order), num_pairs):
            yield self.of(order[start : start + num_pairs])

    def of(self, chosen: Sequence[int] | np.ndarray) -> Self:
        """The pairs at `chosen`, with their trajectories."""
        pairs = tuple(self.pairs[int(index)] for index in chosen)
        names = {name for pair in pairs for name in pair}
        kept = np.array([name in names for name in self.batch.trajectory_ids], np.bool_)
        return replace(self, batch=self.batch.keep(kept), pairs=pairs)

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Of each of the batch's samples its side's row and its place in it, and the most samples of a row.

        Rows 0 to P - 1 are the chosen trajectories, P to 2 P - 1 the rejected ones: a trajectory with several
        samples (a tree with forks) is one row, since its log-prob is the sum over all of them.
        """
        names = [pair[side] for side in (0, 1) for pair in self.pairs]
        row_of = {name: row for row, name in enumerate(names)}
        rows = np.array([row_of[sample.trajectory_id] for sample in self.batch.samples], np.int64)
        slots = np.zeros(len(rows), np.int64)
        seen = dict.fromkeys(range(len(names)), 0)
        for index, row in enumerate(rows.tolist()):
            slots[index], seen[row] = seen[row], seen[row] + 1
        return rows, slots, max(seen.values(), default=1)


def make_pairs(batch: TrainBatch, *, max_pairs_per_group: int, swap: bool = False) -> PairBatch:
    """The best of each group with its worst, the second best with the second worst, and so on.

    A trajectory is in one pair at most; members of equal reward stand in the order in which they were
    sampled; a group whose rewards are all equal gives no pair. A trajectory without a sampled token is in no
    pair: no token of it can be compared. What is in no pair is dropped and counted as `unpaired`. `swap`
    exchanges the sides: the control that must learn the wrong thing.
    """
    pairs: list[tuple[str, str]] = []
    num_silent = 0
    for group in sorted(set(batch.group_ids.tolist())):
        members = np.flatnonzero((batch.group_ids == group) & (batch.lengths > 0))
        found = list(pairs_of(batch.rewards[members].tolist(), max_pairs_per_group))
        num_silent += not found
        for better, worse in found:
            names = batch.trajectory_ids[members[better]], batch.trajectory_ids[members[worse]]
            pairs.append(names[::-1] if swap else names)
    names = {name for pair in pairs for name in pair}
    unpaired = np.array([name not in names for name in batch.trajectory_ids], np.bool_)
    num_groups = len(set(batch.group_ids.tolist()))
    metrics = {"preference/pairs": float(len(pairs))}
    if num_groups:
        metrics["preference/silent_groups"] = num_silent / num_groups
    return PairBatch(batch=batch.drop(unpaired, reason="unpaired"), pairs=tuple(pairs), metrics=metrics)


def pairs_of(rewards: Sequence[float], most: int) -> Iterator[tuple[int, int]]:
    """(better, worse) places of a group's rewards, at most `most`; each place is in one pair at most."""
    order = np.argsort(-np.asarray(rewards, np.float64), kind="stable").tolist()
    for better, worse in list(zip(order, reversed(order), strict=True))[: min(most, len(order) // 2)]:
        if rewards[better] - rewards[worse] > EQUAL * max(1.0, abs(rewards[better])):
            yield better, worse
