"""Advantage estimators, with the arithmetic."""

import numpy as np
import pytest

from rl.advantages import (
    ADV_ESTIMATORS,
    batch_normalized,
    group_centered,
    group_fractions,
    group_normalized,
    overlong_penalty,
    reinforce,
    rloo,
)

REWARDS = np.array([1.0, 0.0, 0.0, 0.0, 0.5, 0.7])
GROUPS = np.array([0, 0, 0, 0, 1, 1])
RELATIVE = sorted(set(ADV_ESTIMATORS) - {"reinforce"})


def test_reinforce_is_the_reward():
    assert reinforce(REWARDS, GROUPS).tolist() == REWARDS.tolist()


def test_group_centered_by_hand():
    # means 0.25 and 0.6
    np.testing.assert_allclose(group_centered(REWARDS, GROUPS), [0.75, -0.25, -0.25, -0.25, -0.1, 0.1])


def test_group_normalized_by_hand():
    # std: sqrt((.5625 + 3 · .0625) / 3) = 0.5; sqrt(2 · .01 / 1) = .141421
    expected = [0.75 / 0.500001, *[-0.25 / 0.500001] * 3, -0.1 / (0.02**0.5 + 1e-6), 0.1 / (0.02**0.5 + 1e-6)]
    np.testing.assert_allclose(group_normalized(REWARDS, GROUPS), expected, rtol=1e-12)


def test_group_normalized_of_binary_rewards_weighs_rare_successes():
    # |A+| = sqrt((1-p)/p · (G-1)/G), p = 1/4, G = 4: sqrt(3 · 3/4) = 1.5
    assert group_normalized(REWARDS[:4], GROUPS[:4])[0] == pytest.approx(1.5, rel=1e-5)


def test_rloo_by_hand():
    # 1 - 0/3; 0 - 1/3; .5 - .7; .7 - .5
    np.testing.assert_allclose(rloo(REWARDS, GROUPS), [1, -1 / 3, -1 / 3, -1 / 3, -0.2, 0.2], atol=1e-15)


def test_batch_normalized_divides_by_the_std_of_all_rewards():
    expected = group_centered(REWARDS, GROUPS) / (np.std(REWARDS, ddof=1) + 1e-6)
    np.testing.assert_allclose(batch_normalized(REWARDS, GROUPS), expected)


@pytest.mark.parametrize("name", RELATIVE)
def test_uniform_groups_and_groups_of_one_get_exactly_zero(name):
    same = np.float64(np.float32(0.1))
    rewards = np.array([1.0, 0.0, *[same] * 6, same + 1e-9, 0.9])  # rounding of a reward's own arithmetic
    advantages = ADV_ESTIMATORS[name](rewards, np.array([0, 0, *[1] * 7, 2]))
    assert advantages[2:].tolist() == [0.0] * 8
    assert advantages[0] > 0 > advantages[1]


@pytest.mark.parametrize("name", sorted(ADV_ESTIMATORS))
def test_estimators_follow_a_permutation_and_take_no_rewards_at_all(name):
    order = np.array([3, 5, 0, 4, 2, 1])
    straight = ADV_ESTIMATORS[name](REWARDS, GROUPS)
    np.testing.assert_allclose(ADV_ESTIMATORS[name](REWARDS[order], GROUPS[order]), straight[order])
    assert straight.dtype == np.float64
    assert ADV_ESTIMATORS[name](np.zeros(0), np.zeros(0, np.int64)).shape == (0,)


def test_overlong_penalty_is_flat_then_linear_then_floored():
    # buffer 20 of 100: 0 up to 80, -(90 - 80) / 20 at 90, -1 at 100 and beyond; times 2
    penalty = overlong_penalty(
        np.array([10, 80, 90, 100, 150]),
        max_response_length=100,
        overlong_buffer_len=20,
        overlong_penalty_factor=2.0,
    )
    np.testing.assert_allclose(penalty, [0, 0, -1.0, -2.0, -2.0], atol=0)


def test_group_fractions_count_groups():
    rewards = np.array([1.0, 0.0, 0.5, 0.5, 0.5, 0.9])
    assert group_fractions(rewards, np.array([0, 0, 1, 1, 1, 2])) == (1 / 3, 1 / 3)
    assert group_fractions(np.zeros(0), np.zeros(0)) == (0.0, 0.0)
