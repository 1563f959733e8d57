"""Advantages by token, with the arithmetic, against loops over the sampled tokens alone."""

import numpy as np
import pytest

from rl.advantages import group_centered, group_normalized
from rl.token_advantages import (
    broadcast,
    discounted_sums,
    gae,
    gigpo,
    length_adaptive_lam,
    mt_grpo,
    next_values,
    on_policy_distillation,
    per_turn,
    reinforce_pp,
    reinforce_pp_baseline,
    token_rewards,
    vapo_gae,
    whiten,
)

# Row 0: two turns with a tool result between them; row 1: one turn; row 2: nothing sampled.
MASK = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
GARBAGE = np.resize([np.nan, np.inf, -np.inf, 1e9], MASK.shape)
RANDOM = np.random.default_rng(0).normal(size=(3, *MASK.shape))
PAIR = (RANDOM[0], RANDOM[1])  # rewards and values
REWARDS = np.array([1.0, 0.25, 0.5])
GROUPS = np.array([0, 0, 1])


def gae_by_loops(rewards, values, mask, gamma, lam):
    """Generalized advantage estimation on each row's sampled tokens, cut out of the row."""
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for row, columns in enumerate(map(np.flatnonzero, mask)):
        r, v = rewards[row, columns], np.append(values[row, columns], 0.0)
        deltas = r + gamma * v[1:] - v[:-1]
        for k, column in enumerate(columns):
            powers = (gamma * lam[row]) ** np.arange(len(columns) - k)
            advantages[row, column] = (powers * deltas[k:]).sum()
            returns[row, column] = advantages[row, column] + v[k]
    return advantages, returns


def test_token_rewards_put_the_reward_at_the_last_sampled_token():
    kl = np.where(MASK, 0.5, np.nan)
    expected = [[-0.1, -0.1, 0, 0, 0.9, 0], [0, -0.1, -0.1, 0.15, 0, 0], [0] * 6]
    np.testing.assert_allclose(token_rewards(REWARDS, MASK, kl=kl, kl_coef=0.2), expected, atol=1e-15)
    plain = token_rewards(REWARDS, MASK)
    assert plain.tolist() == [[0, 0, 0, 0, 1.0, 0], [0, 0, 0, 0.25, 0, 0], [0] * 6]


def test_discounted_sums_pass_through_a_tool_result_undiscounted():
    # 4 at the last token; .5 · 4 = 2 at the one before the tool result, plus its own 1; then .5 · 3
    values = np.array([[0.0, 1.0, 9.0, 9.0, 4.0, 9.0]])
    assert discounted_sums(values, MASK[:1], 0.5).tolist() == [[1.5, 3.0, 0, 0, 4.0, 0]]
    by_row = discounted_sums(np.ones(MASK.shape), MASK, np.array([0.0, 1.0, 1.0]))
    assert by_row.tolist() == [[1, 1, 0, 0, 1, 0], [0, 3, 2, 1, 0, 0], [0] * 6]


def test_next_values_skip_a_tool_result():
    values = np.arange(18.0).reshape(MASK.shape)
    assert next_values(values, MASK).tolist() == [[1, 4, 0, 0, 0, 0], [0, 8, 9, 0, 0, 0], [0] * 6]


def test_gae_by_hand():
    # δ: 0 + .5 · 2 - 1 = 0; 0 + .5 · 4 - 2 = 0; 1 - 4 = -3. γλ = .25: A = -3/16, -.75, -3
    values = np.array([[1.0, 2.0, 7.0, 7.0, 4.0, 7.0]])
    advantages, returns = gae(token_rewards(REWARDS[:1], MASK[:1]), values, MASK[:1], gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-3 / 16, -0.75, 0, 0, -3, 0]]
    assert returns.tolist() == [[13 / 16, 1.25, 0, 0, 1, 0]]


def test_gae_is_the_obvious_loop_whether_lambda_is_one_or_by_row():
    lam = np.array([0.3, 0.9, 0.5])
    actual = gae(*PAIR, MASK, gamma=0.97, lam=lam)
    np.testing.assert_allclose(actual, gae_by_loops(*PAIR, MASK, 0.97, lam), atol=1e-14)
    same = gae(*PAIR, MASK, gamma=0.97, lam=0.9)
    np.testing.assert_allclose(same, gae_by_loops(*PAIR, MASK, 0.97, [0.9] * 3), atol=1e-14)


def test_deleting_what_is_masked_changes_nothing():
    dense = np.ones((1, 3), bool)
    whole = gae(*PAIR, MASK, gamma=0.9, lam=0.8)
    for row in (0, 1):
        rewards, values = (x[row, MASK[row]][None] for x in PAIR)
        for kept, full in zip(gae(rewards, values, dense, gamma=0.9, lam=0.8), whole, strict=True):
            assert kept[0].tolist() == full[row, MASK[row]].tolist()


def test_gae_with_lambda_1_returns_the_rewards_to_come_and_with_0_the_errors():
    _, returns = gae(*PAIR, MASK, gamma=0.9, lam=1.0)
    np.testing.assert_allclose(returns, discounted_sums(RANDOM[0], MASK, 0.9), atol=1e-14)
    advantages, _ = gae(*PAIR, MASK, gamma=0.9, lam=0.0)
    errors = RANDOM[0] + 0.9 * next_values(RANDOM[1], MASK) - RANDOM[1]
    np.testing.assert_allclose(advantages, np.where(MASK, errors, 0), atol=1e-14)


def test_vapo_has_a_lambda_by_length_for_the_policy_and_its_own_for_the_critic():
    # α n = 1.5 and .9 · 1: 1 - 1/1.5 = 1/3; below 1: 0
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    np.testing.assert_allclose(length_adaptive_lam(mask, alpha=0.5), [1 / 3, 0, 0])
    assert length_adaptive_lam(np.ones((1, 1000), bool), alpha=0.05)[0] == pytest.approx(0.98)
    advantages, returns = vapo_gae(*PAIR, MASK, alpha=0.5, gamma=0.9)
    lam = length_adaptive_lam(MASK, alpha=0.5)
    np.testing.assert_allclose(advantages, gae_by_loops(*PAIR, MASK, 0.9, lam)[0], atol=1e-14)
    np.testing.assert_allclose(returns, discounted_sums(RANDOM[0], MASK, 0.9), atol=1e-14)
    _, others = vapo_gae(*PAIR, MASK, alpha=0.5, gamma=0.9, critic_lam=0.5)
    np.testing.assert_allclose(others, gae_by_loops(*PAIR, MASK, 0.9, [0.5] * 3)[1], atol=1e-14)


def test_whiten_is_over_all_sampled_tokens_at_once():
    actual = whiten(RANDOM[0], MASK)
    tokens = RANDOM[0][MASK]
    expected = (tokens - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(actual[MASK], expected, rtol=1e-13)
    assert not actual[~MASK].any()
    single = np.zeros(MASK.shape, bool)
    single[0, 0] = True
    assert not whiten(RANDOM[0], single).any()


def test_reinforce_pp_whitens_returns_with_the_kl_in_them():
    # γ = .5, rewards 1 and .25 less .1 a token: row 0: .9, .35, .075; row 1: .15, -.025, -.1125
    rewards = token_rewards(REWARDS, MASK, kl=np.ones(MASK.shape), kl_coef=0.1)
    returns = np.array([0.075, 0.35, 0.9, -0.1125, -0.025, 0.15])
    np.testing.assert_allclose(discounted_sums(rewards, MASK, 0.5)[MASK], returns, atol=1e-15)
    expected = (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(reinforce_pp(rewards, MASK, gamma=0.5)[MASK], expected, rtol=1e-12)


def test_reinforce_pp_baseline_whitens_differences_and_a_group_of_one_is_0_among_them():
    mask = np.array([[1, 1], [1, 0], [1, 0]], bool)
    # differences .375, .375, -.375, 0: mean .09375
    differences = np.array([0.375, 0.375, -0.375, 0.0])
    std = np.sqrt(differences.var(ddof=1) + 1e-8)
    actual = reinforce_pp_baseline(REWARDS, GROUPS, mask)
    np.testing.assert_allclose(actual[mask], (differences - 0.09375) / std, rtol=1e-13)
    assert not reinforce_pp_baseline(np.full(3, 0.1), GROUPS, mask).any()
    shape = broadcast(group_centered(REWARDS, GROUPS), mask)
    assert shape.tolist() == [[0.375, 0.375], [-0.375, 0], [0, 0]]


def test_distillation_pulls_to_the_teacher_token_by_token():
    student, teacher = np.full(MASK.shape, -1.0), np.full(MASK.shape, -1.5)
    now = on_policy_distillation(student, teacher, MASK, coef=2.0)
    assert now.tolist() == np.where(MASK, -1.0, 0.0).tolist()
    # γ = .5: -1, -1 - .5, -1 - .5 · 1.5 over the three sampled tokens, the last first
    later = on_policy_distillation(student, teacher, MASK, coef=2.0, gamma=0.5)
    assert later[0].tolist() == [-1.75, -1.5, 0, 0, -1.0, 0]


def test_per_turn_spreads_a_turns_value_over_its_tokens():
    turn_ids = np.array([[0, 0, 9, -5, 1, 9], [7, 1, 1, 1, 9, 9], [9] * 6])
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert per_turn(values, turn_ids, MASK).tolist() == [[1, 1, 0, 0, 2, 0], [0, 4, 4, 4, 0, 0], [0] * 6]
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"turn_ids .* {wrong}.*one of the 2 turns"):
            per_turn(values, np.full(MASK.shape, wrong), MASK)


def test_mt_grpo_adds_the_turn_part_to_the_first_turn_alone():
    # Two of a group: ±.5 / (√.5 + 1e-4) for the outcome, ∓ the same for the turn
    turn_ids = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0] * 6])
    size = 0.5 / (np.sqrt(0.5) + 1e-4)
    actual = mt_grpo(
        np.array([1.0, 0.0, 1.0]),
        np.array([0.0, 1.0, 1.0]),
        GROUPS,
        turn_ids,
        MASK,
        turn_advantage_coef=0.5,
    )
    first, later = 0.5 * size, size
    expected = [[first, first, 0, 0, later, 0], [0, -first, -first, -later, 0, 0], [0] * 6]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def gigpo_by_loops(rewards, step_rewards, anchors, step_mask, groups, gamma, omega):
    """The definition with F_norm = 1: for each step, all steps of the group that began in its state."""
    steps = [(n, k) for n, k in zip(*np.nonzero(step_mask), strict=True)]
    later = {
        (n, k): sum(gamma ** (j - k) * step_rewards[n, j] for m, j in steps if m == n and j >= k)
        for n, k in steps
    }
    result = np.zeros(step_mask.shape)
    for n, k in steps:
        same = [later[s] for s in steps if groups[s[0]] == groups[n] and anchors[s] == anchors[n, k]]
        episode = rewards[n] - rewards[groups == groups[n]].mean()
        result[n, k] = episode + omega * (later[n, k] - np.mean(same))
    return result


def test_gigpo_compares_steps_that_began_in_the_same_state_of_the_same_task():
    # γ = .5. Trajectories 0 and 1 share states a (both begin there) and b; 2 is of another group.
    anchors = np.array([["a", "b", "c"], ["a", "b", ""], ["a", "b", ""]])
    step_mask = anchors != ""
    step_rewards = np.array([[0.0, 0.0, 1.0], [0.0, 0.5, 9.0], [1.0, 1.0, 9.0]])
    rewards = np.array([1.0, 0.5, 2.0])
    # R: .25, .5, 1 | .25, .5 | 1.5, 1: the means of a and b in the group are .25 and .5, so only A_episode
    actual = gigpo(rewards, step_rewards, anchors, step_mask, GROUPS, gamma=0.5)
    np.testing.assert_allclose(actual, [[0.25] * 3, [-0.25, -0.25, 0], [0, 0, 0]], atol=1e-15)
    step_rewards[1, 1] = 0.3  # R: .15, .3; a: .2 ± .05, b: .4 ± .1
    actual = gigpo(rewards, step_rewards, anchors, step_mask, GROUPS, gamma=0.5, omega=2.0)
    np.testing.assert_allclose(actual, [[0.35, 0.45, 0.25], [-0.35, -0.45, 0], [0] * 3], atol=1e-15)
    normalized = gigpo(
        rewards, step_rewards, anchors, step_mask, GROUPS, gamma=0.5, norm_adv_by_std="group", eps=1e-3
    )
    episode = group_normalized(rewards, GROUPS, eps=1e-3)[0]
    a, b = 0.05 / (0.05 * 2**0.5 + 1e-3), 0.1 / (0.1 * 2**0.5 + 1e-3)  # two values ± d: std d √2
    np.testing.assert_allclose(normalized[0], [episode + a, episode + b, episode], rtol=1e-12)


def test_gigpo_is_the_obvious_loop():
    rng = np.random.default_rng(1)
    groups, anchors = np.array([0, 1, 0, 1, 0, 2]), rng.integers(0, 3, (6, 5))
    step_mask = np.arange(5) < rng.integers(0, 6, (6, 1))
    rewards, step_rewards = rng.normal(size=6), rng.normal(size=(6, 5))
    actual = gigpo(rewards, step_rewards, anchors, step_mask, groups, gamma=0.9, omega=0.7)
    expected = gigpo_by_loops(rewards, step_rewards, anchors, step_mask, groups, 0.9, 0.7)
    np.testing.assert_allclose(actual, expected, atol=1e-14)
    assert not gigpo(rewards, step_rewards, anchors, np.zeros_like(step_mask), groups).any()


EVERY = {
    "token_rewards": lambda x, mask: token_rewards(REWARDS, mask, kl=x[0], kl_coef=0.1),
    "discounted_sums": lambda x, mask: discounted_sums(x[0], mask, 0.9),
    "next_values": lambda x, mask: next_values(x[0], mask),
    "whiten": lambda x, mask: whiten(x[0], mask),
    "gae": lambda x, mask: np.stack(gae(x[0], x[1], mask, gamma=0.9, lam=0.8)),
    "vapo": lambda x, mask: np.stack(vapo_gae(x[0], x[1], mask, alpha=0.5)),
    "reinforce_pp": lambda x, mask: reinforce_pp(x[0], mask, gamma=0.9),
    "reinforce_pp_baseline": lambda x, mask: reinforce_pp_baseline(REWARDS, GROUPS, mask),
    "distillation": lambda x, mask: on_policy_distillation(x[0], x[1], mask, gamma=0.5),
    "mt_grpo": lambda x, mask: mt_grpo(REWARDS, REWARDS[::-1], GROUPS, np.where(x[2] > 0, 0, 1), mask),
}


@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_sampled_is_never_read_and_gets_zero(name):
    clean = EVERY[name](RANDOM, MASK)
    dirty = EVERY[name](np.where(MASK, RANDOM, GARBAGE), MASK)
    assert dirty.tolist() == clean.tolist()
    assert not clean[..., ~MASK].any()
    assert clean[..., MASK].any()
    assert not EVERY[name](RANDOM, np.zeros_like(MASK)).any()


@pytest.mark.parametrize("name", EVERY)
def test_float32_inputs_are_computed_in_float64(name):
    rounded = EVERY[name](RANDOM.astype(np.float32), MASK)
    assert rounded.dtype == np.float64
    np.testing.assert_allclose(rounded, EVERY[name](RANDOM, MASK), rtol=2e-5, atol=2e-6)


def test_one_input_that_is_not_finite_spoils_its_row_before_it_and_nothing_else():
    kl = np.zeros(MASK.shape)
    kl[0, 1] = np.nan
    rewards = token_rewards(REWARDS, MASK, kl=kl, kl_coef=0.1)
    advantages = reinforce_pp(rewards, MASK)
    assert np.isnan(advantages[0, :2]).all()
    # Returns that are left: 1 in row 0, .25 three times in row 1: mean .4375, var .140625
    expected = np.array([1.0, 0.25, 0.25, 0.25]) - 0.4375
    np.testing.assert_allclose(advantages[MASK][2:], expected / np.sqrt(0.140625 + 1e-8))
