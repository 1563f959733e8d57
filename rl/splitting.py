"""A batch in parts of about equal work, one a rank; and the work of a rank that has none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heapreplace

import numpy as np

from rl.batch import TrainBatch
from rl.layout import PaddedLayout, pad
from rl.pairs import PairBatch, PairTotals
from rl.samples import TrainSample

UNEVEN = 1.1
"""Groups stay whole while the rank with most tokens has at most this many times the mean."""


def balanced(costs: Sequence[int], num_parts: int) -> list[list[int]]:
    """Indices of `costs` in `num_parts` parts of about equal sum, each in order; parts may be empty.

    The dearest first, each to the part that has least: the largest sum is at most 4/3 - 1/(3 n) of the best
    possible one (Graham 1969).

    Example:
        balanced([7, 5, 4, 3, 2], 2)  ->  [[0, 3], [1, 2, 4]], sums 10 and 11
    """
    loads = [(0, part) for part in range(num_parts)]
    heapify(loads)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, part = loads[0]
        parts[part].append(index)
        heapreplace(loads, (load + costs[index], part))
    return [sorted(part) for part in parts]


def rows_by_rank(samples: Sequence[TrainSample], num_ranks: int) -> list[list[int]]:
    """The samples of each rank, balanced by tokens; whole groups, which share a prompt, where they fit."""
    tokens = [len(sample.token_ids) for sample in samples]
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        groups[sample.group_id].append(row)
    members = list(groups.values())
    parts = balanced([sum(tokens[row] for row in rows) for rows in members], num_ranks)
    by_group = [sorted(row for group in part for row in members[group]) for part in parts]
    most = max(sum(tokens[row] for row in rows) for rows in by_group)
    return by_group if most * num_ranks <= UNEVEN * sum(tokens) else balanced(tokens, num_ranks)


def split_batch(batch: TrainBatch, num_ranks: int) -> list[TrainBatch]:
    """One part a rank, with the denominators of the whole batch."""
    return batch.split(rows_by_rank(batch.samples, num_ranks))


def split_pairs(pairs: PairBatch, num_ranks: int, *, z0: float) -> list[PairBatch]:
    """Whole pairs, balanced by tokens; each part knows the number of all pairs, and KTO's z0 of the whole."""
    tokens = dict.fromkeys(pairs.batch.trajectory_ids, 0)
    for sample in pairs.batch.samples:
        tokens[sample.trajectory_id] += len(sample.token_ids)
    costs = [sum(tokens[name] for name in pair) for pair in pairs.pairs]
    totals = PairTotals(num_pairs=pairs.num_pairs, z0=z0)
    return [replace(pairs.of(part), totals=totals) for part in balanced(costs, num_ranks)]


def nothing_to_train() -> PaddedLayout:
    """One row of two tokens, for a rank that must compute with the others and has nothing left to compute."""
    zeros = np.zeros(2, np.float32)
    sample = TrainSample(
        token_ids=np.zeros(2, np.int64),
        loss_mask=np.array([False, True]),
        rollout_logprobs=zeros,
        versions=np.full(2, -1, np.int64),
        turn_ids=np.array([-1, 0]),
        trajectory_id="nothing",
        group_id=0,
        env="",
        weight=1.0,
    )
    return pad([sample])
