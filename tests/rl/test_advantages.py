"""Advantage estimators, with the arithmetic."""

import math
from typing import Any

import numpy as np
import pytest

from rl.advantages import (
    ADV_ESTIMATORS,
    batch_normalized,
    ema_centered,
    gdpo,
    gpg,
    group_centered,
    group_fractions,
    group_normalized,
    group_relative,
    grpo_passk,
    maxrl,
    opmd,
    opo,
    overlong_penalty,
    reinforce,
    remax,
    rloo,
    spo,
    whitened,
)

REWARDS = np.array([1.0, 0.0, 0.0, 0.0, 0.5, 0.7])
GROUPS = np.array([0, 0, 0, 0, 1, 1])
LENGTHS = np.array([1, 2, 3, 4, 5, 15])
COMPARING = {
    **{name: ADV_ESTIMATORS[name] for name in set(ADV_ESTIMATORS) - {"reinforce"}},
    "lite_ppo of centered": lambda rewards, groups: batch_normalized(rewards, groups, std_of="centered"),
    "grpo with eps 0": lambda rewards, groups: group_normalized(rewards, groups, eps=0.0),
    "opmd mean": lambda rewards, groups: opmd(rewards, groups, baseline="mean"),
    "grpo_passk without std": lambda rewards, groups: grpo_passk(rewards, groups, norm_adv_by_std="none"),
    "opo": lambda rewards, groups: opo(rewards, groups, lengths=1 + np.round(5 * rewards)),
}
"""Every estimator that compares the members of a group."""


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
    assert group_normalized(REWARDS[:4], GROUPS[:4], eps=0.0)[0] == pytest.approx(1.5, rel=1e-14)


def test_rloo_by_hand():
    # 1 - 0/3; 0 - 1/3; .5 - .7; .7 - .5
    np.testing.assert_allclose(rloo(REWARDS, GROUPS), [1, -1 / 3, -1 / 3, -1 / 3, -0.2, 0.2], atol=1e-15)


def test_batch_normalized_divides_by_the_std_of_all_rewards_or_of_all_differences():
    centered = group_centered(REWARDS, GROUPS)
    rewards_std = np.std(REWARDS, ddof=1)
    np.testing.assert_allclose(batch_normalized(REWARDS, GROUPS), centered / (rewards_std + 1e-6))
    # Σ of squares: .5625 + 3 · .0625 + 2 · .01 = .77, over 5
    expected = centered / (math.sqrt(0.77 / 5) + 1e-6)
    np.testing.assert_allclose(batch_normalized(REWARDS, GROUPS, std_of="centered"), expected)


def test_group_relative_is_all_three_by_what_divides():
    batch = batch_normalized(REWARDS, GROUPS, std_of="centered", eps=0.1)
    actual = group_relative(REWARDS, GROUPS, norm_adv_by_std="batch", std_of="centered", eps=0.1)
    assert actual.tolist() == batch.tolist()
    group = group_relative(REWARDS, GROUPS, norm_adv_by_std="group", eps=0.1)
    assert group.tolist() == group_normalized(REWARDS, GROUPS, eps=0.1).tolist()
    none = group_relative(REWARDS, GROUPS, norm_adv_by_std="none")
    assert none.tolist() == group_centered(REWARDS, GROUPS).tolist()
    wrong: Any = "groups"
    with pytest.raises(ValueError, match="norm_adv_by_std 'groups'"):
        group_relative(REWARDS, GROUPS, norm_adv_by_std=wrong)


def test_opo_compares_with_the_mean_weighted_by_length():
    # (1·1 + 0) / 10 = .1; (5 · .5 + 15 · .7) / 20 = .65
    expected = [0.9, -0.1, -0.1, -0.1, -0.15, 0.05]
    np.testing.assert_allclose(opo(REWARDS, GROUPS, lengths=LENGTHS), expected, atol=1e-15)
    same = opo(REWARDS, GROUPS, lengths=np.full(6, 7))
    np.testing.assert_allclose(same, group_centered(REWARDS, GROUPS), atol=1e-15)
    assert opo(REWARDS, GROUPS, lengths=LENGTHS * (GROUPS == 1))[:4].tolist() == [0.0] * 4  # no token in it


def test_gpg_scales_with_the_share_of_rewards_that_are_not_zero():
    # 6 trajectories, 3 of them not 0: α = 2
    np.testing.assert_allclose(gpg(REWARDS, GROUPS), 2.0 * group_centered(REWARDS, GROUPS))
    assert gpg(np.zeros(3), np.zeros(3)).tolist() == [0.0] * 3


def test_remax_subtracts_the_greedy_reward():
    np.testing.assert_allclose(remax(np.array([1.0, 0.0]), np.array([0.25, 0.25])), [0.75, -0.25])


def test_passk_credits_the_best_with_its_lead_over_the_second():
    # group 0: lead 1 - 0 over std 0.5; group 1: .7 - .5 over .141421
    expected = [1 / 0.500001, 0, 0, 0, 0, 0.2 / (0.02**0.5 + 1e-6)]
    np.testing.assert_allclose(grpo_passk(REWARDS, GROUPS), expected, rtol=1e-12)
    plain = grpo_passk(REWARDS, GROUPS, norm_adv_by_std="none")
    np.testing.assert_allclose(plain, [1, 0, 0, 0, 0, 0.2])
    assert not grpo_passk(np.array([1.0, 1.0, 0.0]), np.zeros(3)).any()  # two are best: no lead


def test_maxrl_divides_by_the_mean_where_there_is_a_success():
    # .75/.25, -.25/.25 three times; -.1/.6, .1/.6
    np.testing.assert_allclose(maxrl(REWARDS, GROUPS), [3, -1, -1, -1, -1 / 6, 1 / 6])
    np.testing.assert_allclose(maxrl(REWARDS, GROUPS, eps=0.25)[0], 1.5)
    for eps in (0.0, 2.0):  # means 0 and -1
        assert not maxrl(np.array([1.0, -1.0, -3.0, 1.0]), np.array([0, 0, 1, 1]), eps=eps).any()


def test_opmd_subtracts_a_soft_maximum():
    # τ = 1: log((e + 3) / 4); τ = .5: .5 log((e^1 + e^1.4) / 2)
    first = math.log((math.e + 3) / 4)
    np.testing.assert_allclose(opmd(REWARDS, GROUPS)[:4], np.array([1.0, 0, 0, 0]) - first)
    second = 0.5 * math.log((math.e + math.exp(1.4)) / 2)
    np.testing.assert_allclose(opmd(REWARDS, GROUPS, tau=0.5)[4:], [0.5 - second, 0.7 - second])
    np.testing.assert_allclose(opmd(REWARDS, GROUPS, tau=1e4), group_centered(REWARDS, GROUPS), atol=1e-4)
    mean = opmd(REWARDS, GROUPS, baseline="mean")
    assert mean.tolist() == group_centered(REWARDS, GROUPS).tolist()
    huge = opmd(np.array([1000.0, 0.0]), np.zeros(2))  # e^1000 is never formed
    np.testing.assert_allclose(huge, [math.log(2), math.log(2) - 1000])
    with pytest.raises(ValueError, match="tau = 0"):
        opmd(REWARDS, GROUPS, tau=0)


def test_gdpo_normalizes_each_part_before_they_are_added():
    # One group, two parts of very different scale: each becomes ±.5/(std + eps), std √(1/3).
    parts = np.array([[100.0, 0.0], [100.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    a, b = (50 / (math.sqrt(10000 / 3) + 1e-6), 0.5 / (math.sqrt(1 / 3) + 1e-6))
    total = np.array([2 * a - b, 2 * a + b, -2 * a - b, -2 * a + b])
    expected = total / math.sqrt((total**2).sum() / 3 + 1e-8)  # mean 0
    np.testing.assert_allclose(gdpo(parts, np.zeros(4), reward_weights=[2, 1]), expected, rtol=1e-12)
    # Without weights 1 each; with lengths, the same as whitening the repeated rows.
    lengths = np.array([1, 2, 0, 3])
    plain = np.array([a - b, a + b, -a - b, -a + b])
    repeated = np.repeat(plain, lengths)
    std = math.sqrt(repeated.var(ddof=1) + 1e-8)
    by_token = gdpo(parts, np.zeros(4), lengths=lengths)
    np.testing.assert_allclose(by_token, (plain - repeated.mean()) / std, rtol=1e-12)


def test_spo_whitens_differences_to_the_tracked_values_over_the_batch():
    # v = .75, .5, .25: differences .25, -.5, -.25, mean -1/6, std √((.4167² + .3333² + .0833²) / 2)
    differences = np.array([0.25, -0.5, -0.25])
    actual = spo(np.array([1.0, 0, 0]), np.array([6.0, 4, 2]), np.array([2.0, 4, 6]))
    std = math.sqrt(((5 / 12) ** 2 + (1 / 3) ** 2 + (1 / 12) ** 2) / 2)
    np.testing.assert_allclose(actual, (differences + 1 / 6) / (std + 1e-8), rtol=1e-12)
    assert spo(np.ones(1), np.ones(1), np.ones(1)).tolist() == [0.0]
    assert not spo(np.full(7, np.float32(0.1)), np.ones(7), np.ones(7)).any()


def test_ema_centered_compares_before_it_learns_and_goes_on_where_it_stopped():
    # b: .5 -> .9 · .5 + .1 · 1 = .55 -> .9 · .55 = .495
    advantages, baseline = ema_centered(np.array([1.0, 0.0]), 0.5, decay=0.9)
    np.testing.assert_allclose([*advantages, baseline], [0.5, -0.55, 0.495])
    whole, end = ema_centered(REWARDS, 0.0, decay=0.9)
    first, middle = ema_centered(REWARDS[:2], 0.0, decay=0.9)
    rest, same_end = ema_centered(REWARDS[2:], middle, decay=0.9)
    assert [*first, *rest, same_end] == [*whole, end]


@pytest.mark.parametrize("name", sorted(COMPARING))
def test_uniform_groups_and_groups_of_one_get_exactly_zero(name):
    same = np.float64(np.float32(0.1))
    rewards = np.array([1.0, 0.0, *[same] * 6, same + 1e-9, 0.9])  # rounding of a reward's own arithmetic
    advantages = COMPARING[name](rewards, np.array([0, 0, *[1] * 7, 2]))
    assert advantages[2:].tolist() == [0.0] * 8
    assert advantages[0] > 0 >= advantages[1]


@pytest.mark.parametrize("name", sorted(COMPARING))
def test_estimators_follow_a_permutation_and_take_no_rewards_at_all(name):
    order = np.array([3, 5, 0, 4, 2, 1])
    straight = COMPARING[name](REWARDS, GROUPS)
    np.testing.assert_allclose(COMPARING[name](REWARDS[order], GROUPS[order]), straight[order], atol=1e-15)
    assert straight.dtype == np.float64
    assert COMPARING[name](np.zeros(0), np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("name", sorted(COMPARING))
def test_rewards_in_float32_change_nothing_but_their_own_rounding(name):
    rewards = np.array([1.0, 0.0, 0.3, 0.9, 0.1, 0.1, 0.1])
    groups = np.array([0, 0, 0, 0, 1, 1, 1])
    rounded = COMPARING[name](rewards.astype(np.float32), groups)
    assert rounded.dtype == np.float64
    np.testing.assert_allclose(rounded, COMPARING[name](rewards, groups), rtol=1e-5, atol=1e-6)


def test_whitened_is_the_obvious_version_on_repeated_values():
    values, counts = np.array([3.0, -1.0, 0.5, 7.0]), np.array([2, 1, 4, 0])
    repeated = np.repeat(values, counts)
    expected = (values - repeated.mean()) / np.sqrt(repeated.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(whitened(values, counts), expected, rtol=1e-14)


def test_whitened_leaves_out_what_does_not_count_and_what_is_not_finite():
    values = np.array([1.0, 2.0, 4.0, np.inf, np.nan])
    clean = whitened(values[:3], np.ones(3))
    actual = whitened(values, np.array([1, 1, 1, 0, 1]))
    assert actual[:3].tolist() == clean.tolist()
    assert np.isnan(actual[4])  # it counts: the loss finds it there


@pytest.mark.parametrize("values", [[0.1] * 7, [5.0], []])
def test_whitened_values_that_do_not_differ_are_exactly_zero(values):
    assert whitened(np.array(values), np.ones(len(values))).tolist() == [0.0] * len(values)


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
