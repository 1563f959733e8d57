"""GRPO-RoC: who is kept, by hand; what is dropped is counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from envs.episode import Episode
from envs.messages import StopReason, Task, message
from rl.algorithms import get_algorithm
from rl.batch import make_batch
from rl.config import Config
from rl.filters import (
    episode_penalty,
    resample_groups,
    resample_on_correct,
    resampling_metrics,
    roc_penalty,
)
from rl.machine import Machine
from rl.metrics import batch_metrics, check_names
from rl.validation import ConfigError, validate
from tests.tiny import make_group


def kept(rewards, penalties, **knobs):
    return np.flatnonzero(resample_on_correct(rewards, penalties, **knobs)).tolist()


def test_the_cleanest_positives_and_the_first_others_are_kept_in_proportion():
    # 6 of 8 are positive: 3 of the 4 to keep are, those with the lowest penalties, equal ones in order. Of
    # the others (2 and 5) the first is kept, though its penalty is higher.
    rewards = [1, 1, 0, 1, 1, 0, 1, 1]
    penalties = [0.5, 0.0, 0.3, 0.2, 0.0, 0.1, 0.2, 0.9]
    assert kept(rewards, penalties, num_kept=4, min_zero=1, min_nonzero=1) == [1, 2, 3, 4]


def test_each_side_keeps_its_minimum_where_there_are_as_many():
    # 1 of 8 is negative: round(1 * 4 / 8) leaves none of it, and the minimum of 2 is capped by the one.
    assert kept([1] * 7 + [0], np.arange(8), num_kept=4) == [0, 1, 2, 7]
    assert kept([1] * 6 + [0, 0], np.arange(8), num_kept=4) == [0, 1, 6, 7]
    assert kept([0] * 6 + [1, 1], np.arange(8), num_kept=4) == [0, 1, 6, 7]


def test_halves_are_rounded_to_even_and_the_kept_always_add_up():
    # 7 others and 9 positives of 16, 8 kept: 7 · 8 / 16 = 3.5, to even 4, and 4 positives. Down: 3, 5.
    assert kept([0] * 7 + [1] * 9, np.arange(16), num_kept=8) == [0, 1, 2, 3, 7, 8, 9, 10]
    # 9 others and 7 positives: 9 · 8 / 16 = 4.5, to even 4, and 4 positives. Rounded half up: 5, 3.
    assert kept([0] * 9 + [1] * 7, np.arange(16), num_kept=8) == [0, 1, 2, 3, 9, 10, 11, 12]
    # 7 and 7, 7 kept: 3.5 on both sides, which are 8 when each is rounded by itself. 4 others, 3 positives.
    assert kept([0] * 7 + [1] * 7, np.arange(14), num_kept=7) == [0, 1, 2, 3, 7, 8, 9]
    for size in range(2, 24):
        for num_positive, num_kept in itertools.product(range(size + 1), range(1, size)):
            least = min(2, num_kept // 2)
            found = kept(
                [1] * num_positive + [0] * (size - num_positive),
                np.zeros(size),
                num_kept=num_kept,
                min_zero=least,
                min_nonzero=least,
            )
            assert len(found) == num_kept


def test_a_groups_share_is_rounded_to_even():
    # Of 7, 7 / 2 = 3.5, to even 4: 3 · 4 / 7 = 1.7 others, 2, and 2 positives. Rounded down: 3.
    rewards, ids = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), np.zeros(7, np.int64)
    found = resample_groups(rewards, np.arange(7.0), ids, oversample=2)
    assert np.flatnonzero(found).tolist() == [0, 1, 3, 4]
    # Of 5, 5 / 2 = 2.5, to even 2: with a minimum of 1, 1 of either side. Rounded half up: 3.
    found = resample_groups(rewards[1:6], np.arange(5.0), ids[:5], oversample=2)
    assert np.flatnonzero(found).tolist() == [0, 2]


def test_a_group_too_small_is_dropped_and_one_of_its_size_is_kept():
    assert kept([1, 0, 1], [0, 0, 0], num_kept=4) == []
    assert kept([1, 0, 1, 0], [0, 0, 0, 0], num_kept=4) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="is above the 3 members"):
        resample_on_correct([1, 0, 1, 0], [0, 0, 0, 0], num_kept=3)


def test_the_penalty_is_the_share_of_failed_calls_and_the_format():
    assert roc_penalty(1, 4) == 0.25
    assert roc_penalty(0, 0) == 0.5
    assert roc_penalty(1, 2, 1.0) == 1.5
    results = (message("tool", "3"), message("tool", "error", is_error=True))

    def episode(stop_reason: StopReason) -> Episode:
        return Episode(
            task=Task(id="t", env="calc", messages=()), transcript=results, stop_reason=stop_reason
        )

    assert episode_penalty(episode(StopReason.ANSWERED)) == 0.5
    assert episode_penalty(episode(StopReason.MAX_TURNS)) == 1.5


def test_the_row_trains_half_of_each_group_and_counts_the_rest():
    row = get_algorithm("roc")
    members = [([[5, 6], [7 + i]], float(i % 2)) for i in range(8)]
    batch = make_batch([make_group(g, members) for g in range(2)])
    penalties = np.tile([0.9, 0.9, 0.0, 0.0, 0.1, 0.1, 0.9, 0.9], 2)
    weighed = row.assign_advantages(type(batch)(**{**vars(batch), "penalties": penalties}))
    assert weighed.trajectory_ids == tuple(f"{g}-{m}" for g in range(2) for m in (0, 2, 3, 5))
    assert weighed.accounting.dropped_trajectories == {"not_resampled": 8}
    assert weighed.rewards.tolist() == [0, 0, 1, 1] * 2  # statistics are of what is kept
    # Each group keeps 2 of 4 of both kinds; kept 0.9, 0, 0, 0.1, dropped 0.9, 0.1, 0.9, 0.9.
    measured = batch_metrics(weighed)
    names = ("kept_positive_frac", "kept_other_frac", "penalty_kept", "penalty_dropped")
    assert [measured[f"roc/{name}"] for name in names] == pytest.approx([0.5, 0.5, 0.25, 0.7])
    check_names(measured)
    assert resample_groups(batch.rewards, penalties, batch.group_ids, oversample=2).sum() == 8


def test_what_was_kept_is_reported_by_class():
    rewards, penalties = np.array([1.0, 2.0, 0.0, -1.0, 0.0]), np.array([0.0, 0.4, 0.1, 0.2, 0.6])
    metrics = resampling_metrics(rewards, penalties, np.array([True, False, True, False, False]))
    assert metrics == pytest.approx(
        {
            "roc/kept_positive_frac": 1 / 2,
            "roc/kept_other_frac": 1 / 3,
            "roc/penalty_kept": 0.05,  # (0 + 0.1) / 2
            "roc/penalty_dropped": 0.4,  # (0.4 + 0.2 + 0.6) / 3
        }
    )
    assert "roc/kept_other_frac" not in resampling_metrics(rewards[:2], penalties[:2], np.ones(2, bool))


def test_a_group_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match="group_size = 2 with oversample = 2"):
        validate(Config(algorithm="roc", group_size=2, num_groups=32), Machine.here())
