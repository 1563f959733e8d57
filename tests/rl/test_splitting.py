"""Batches in parts of equal work: nothing lost, groups whole where they fit, denominators of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.batch import make_batch
from rl.pairs import make_pairs
from rl.splitting import balanced, nothing_to_train, rows_by_rank, split_batch, split_pairs
from tests.tiny import make_group


def test_the_dearest_goes_where_least_is() -> None:
    # 7 | 5;  4 to the 5: 7 | 9;  3 to the 7: 10 | 9;  2 to the 9: 10 | 11
    assert balanced([7, 5, 4, 3, 2], 2) == [[0, 3], [1, 2, 4]]


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 5))
def test_every_index_is_in_one_part_and_no_part_is_far_above_the_best(costs: list[int], num: int) -> None:
    parts = balanced(costs, num)
    assert len(parts) == num
    assert sorted(index for part in parts for index in part) == list(range(len(costs)))
    at_least = max(max(costs, default=0), -(-sum(costs) // num))
    assert max(sum(costs[index] for index in part) for part in parts) <= 2 * at_least


def batch_of(*groups: list[int]):
    """Groups of members with so many sampled tokens each, after a prompt of one; rewards 0, 1, 2, ..."""
    return make_batch(
        [
            make_group(index, [([[1], [5] * size], float(place)) for place, size in enumerate(sizes)])
            for index, sizes in enumerate(groups)
        ]
    )


def test_groups_stay_whole_where_that_is_even() -> None:
    batch = batch_of([4, 4], [5, 3], [4, 4], [6, 2])  # ten tokens a group
    rows = rows_by_rank(batch.samples, 2)
    assert sorted(len(part) for part in rows) == [4, 4]
    groups = [{batch.samples[row].group_id for row in part} for part in rows]
    assert groups[0].isdisjoint(groups[1])


def test_a_group_is_split_where_it_is_all_there_is() -> None:
    batch = batch_of([9, 9, 9, 9])
    assert sorted(len(part) for part in rows_by_rank(batch.samples, 2)) == [2, 2]


def test_parts_have_the_denominators_of_the_whole() -> None:
    batch = batch_of([3, 5], [2])
    parts = split_batch(batch, 4)
    assert sorted(len(part.samples) for part in parts) == [0, 1, 1, 1]
    assert [part.counts for part in parts] == [batch.counts] * 4
    assert [micro.counts for part in parts for micro in part.micro_batches([[0]] * len(part.samples))] == [
        batch.counts
    ] * 3
    assert batch.counts.num_tokens == 10


def test_pairs_stay_whole() -> None:
    pairs = make_pairs(batch_of([3, 5], [2, 2], [8, 1]), max_pairs_per_group=1)
    parts = split_pairs(pairs, 2, z0=0.25)
    assert sorted(pair for part in parts for pair in part.pairs) == sorted(pairs.pairs)
    for part in parts:
        assert (part.num_pairs, part.totals and part.totals.z0) == (3, 0.25)
        assert {name for pair in part.pairs for name in pair} == set(part.batch.trajectory_ids)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_batch_of_nothing_has_parts_too(num_ranks: int) -> None:
    batch = batch_of([3, 5])
    empty = batch.keep(np.zeros(2, np.bool_))
    assert [part.samples for part in split_batch(empty, num_ranks)] == [()] * num_ranks


def test_nothing_to_train_is_one_row_with_one_sampled_token() -> None:
    layout = nothing_to_train()
    assert layout.token_ids.tolist() == [[0, 0]]
    assert layout.loss_mask.tolist() == [[False, True]]
