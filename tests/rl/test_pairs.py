"""Pairs on their way into updates: none is lost, none is cut in two, and who said nothing is in none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rl.batch import make_batch
from rl.metrics import batch_metrics, check_names
from rl.pairs import PairBatch, make_pairs
from tests.tiny import make_group


def seven_pairs() -> PairBatch:
    """Groups 0, 1 and 2 give 2, 2 and 3 pairs; member m of group g samples 1 + (3 g + 2 m) % 7 tokens."""
    rewards = [(1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 2.0, 3.0), (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)]
    groups = [
        make_group(g, [([[5], [7] * (1 + (3 * g + 2 * m) % 7)], reward) for m, reward in enumerate(members)])
        for g, members in enumerate(rewards)
    ]
    return make_pairs(make_batch(groups), max_pairs_per_group=4)


def assert_holds_both_sides_and_no_other(part: PairBatch) -> None:
    names = Counter(name for pair in part.pairs for name in pair)
    assert Counter(part.batch.trajectory_ids) == names
    assert Counter(sample.trajectory_id for sample in part.batch.samples) == names


@pytest.mark.parametrize(
    ("num_minibatches", "sizes"),
    [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (7, [1] * 7), (9, [1, 1, 1, 1, 0, 1, 1, 1, 0])],
)
def test_minibatches_hold_every_pair_once_in_order_with_both_sides(num_minibatches, sizes):
    pairs = seven_pairs()
    assert len(pairs.pairs) == 7
    parts = pairs.minibatches(num_minibatches)
    assert [len(part.pairs) for part in parts] == sizes
    assert tuple(pair for part in parts for pair in part.pairs) == pairs.pairs
    for part in parts:
        assert_holds_both_sides_and_no_other(part)


@pytest.mark.parametrize(("num_pairs", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (9, [7])])
def test_micro_batches_hold_every_pair_once_shortest_first(num_pairs, sizes):
    pairs = seven_pairs()
    parts = list(pairs.micro_batches(num_pairs))
    assert [len(part.pairs) for part in parts] == sizes
    assert Counter(pair for part in parts for pair in part.pairs) == Counter(pairs.pairs)
    longest = [int(part.batch.lengths.max()) for part in parts]
    assert longest == sorted(longest)
    for part in parts:
        assert_holds_both_sides_and_no_other(part)


def test_rewards_that_are_all_equal_give_no_pair_and_minibatches_of_nothing():
    groups = [make_group(g, [([[5], [7, 8]], 1.0)] * 3) for g in range(2)]
    pairs = make_pairs(make_batch(groups), max_pairs_per_group=4)
    assert pairs.metrics == {"preference/pairs": 0.0, "preference/silent_groups": 1.0}
    metrics = batch_metrics(pairs.batch) | pairs.metrics
    assert metrics["dropped/unpaired"] == 6.0
    assert (metrics["tokens/sampled"], metrics["tokens/trained"], metrics["tokens/dropped"]) == (12, 0, 12)
    check_names(metrics)
    assert [part.batch.samples for part in pairs.minibatches(3)] == [(), (), ()]
    assert list(pairs.micro_batches(2)) == []
    nothing = make_pairs(make_batch([]), max_pairs_per_group=4)
    assert nothing.metrics == {"preference/pairs": 0.0}  # a share of no groups is none


def test_a_member_that_sampled_no_token_is_in_no_pair():
    # 0-1 is the worst of its group, and said nothing: the best meets the next, not what has no log-prob.
    members = [([[5], [7, 8]], 1.0), ([[5], []], 0.0), ([[5], [9]], 0.5)]
    pairs = make_pairs(make_batch([make_group(0, members)]), max_pairs_per_group=4)
    assert pairs.pairs == (("0-0", "0-2"),)
    assert pairs.batch.accounting.dropped_trajectories == {"unpaired": 1}
    alone = make_pairs(make_batch([make_group(0, members[:2])]), max_pairs_per_group=4)
    assert (alone.pairs, alone.metrics["preference/silent_groups"]) == ((), 1.0)


def test_an_empty_turn_among_others_takes_nothing_from_its_trajectory():
    members = [([[5], [7, 8], [10], [], [11], [12]], 1.0), ([[5], [9]], 0.0)]
    pairs = make_pairs(make_batch([make_group(0, members)]), max_pairs_per_group=4)
    assert pairs.pairs == (("0-0", "0-1"),)
    (sample,) = (s for s in pairs.batch.samples if s.trajectory_id == "0-0")
    assert sample.token_ids.tolist() == [5, 7, 8, 10, 11, 12]
    assert sample.loss_mask.tolist() == [0, 1, 1, 0, 0, 1]
    rows, _, _ = pairs.places
    assert np.array_equal(rows, [0, 1])
