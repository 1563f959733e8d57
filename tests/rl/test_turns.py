"""Credit by turn, rewards by part, and a coefficient that follows the KL, on a whole batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.numerics import metric_values
from rl.outputs import TokenOutputs
from rl.samples import by_turn
from rollout.trajectory import TrajectoryGroup, Turn
from tests.rl.making import evaluate
from tests.tiny import make_group

PROMPT, FIRST, OTHER = [5, 6], [8, 9], [8, 11]


def group(turn_rewards: list[list[float]], members: list, index: int = 0) -> TrajectoryGroup:
    made = make_group(index, members)
    rewarded = tuple(
        replace(t, turns=tuple(replace(turn, reward=r) for turn, r in zip(t.turns, rewards, strict=True)))
        for t, rewards in zip(made.trajectories, turn_rewards, strict=True)
    )
    return replace(made, trajectories=rewarded)


def two_of_two_turns() -> TrainBatch:
    """Rewards 1 and 0; the first turns earn 0 and 0.5; the second turns followed the same observation."""
    members = [([PROMPT, [7], FIRST, [7, 7]], 1.0), ([PROMPT, [7, 7], FIRST, [7]], 0.0)]
    return make_batch([group([[0.0, 0.0], [0.5, 0.25]], members)])


def by_token(batch: TrainBatch) -> list[list[float]]:
    """The advantages of the sampled tokens alone."""
    assert batch.advantages is not None
    return [array[s.loss_mask].tolist() for s, array in zip(batch.samples, batch.advantages, strict=True)]


def test_mt_grpo_credits_the_first_turn_with_its_own_reward() -> None:
    batch = get_algorithm("mt_grpo", turn_advantage_coef=0.5).assign_advantages(two_of_two_turns())
    # (1 - .5) / (.70711 + 1e-4) = .70701; the turn's (0 - .25) / (.35355 + 1e-4) = -.70691, halved
    outcome, turn = 0.5 / (0.5**0.5 + 1e-4), 0.25 / (0.125**0.5 + 1e-4)
    expected = [[outcome - 0.5 * turn, outcome, outcome], [-outcome + 0.5 * turn] * 2 + [-outcome]]
    for ours, theirs in zip(by_token(batch), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_gigpo_compares_turns_that_followed_the_same_observation() -> None:
    row = get_algorithm("gigpo", kl_loss_coef=0.0, turn_advantage_coef=2.0)
    # Episodes: ±.5. Returns of the second turns: 1 and .25, ±.375 about their mean. Of the first turns, which
    # share the prompt: 0 + .95 · 1 = .95, and .5 + .95 · .25 = .7375: ±.10625. The turns' part counts twice.
    first, last = 0.5 + 2 * 0.10625, 0.5 + 2 * 0.375
    expected = [[first, last, last], [-first, -first, -last]]
    for ours, theirs in zip(by_token(row.assign_advantages(two_of_two_turns())), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # The second turns of another pair followed different observations: there is nothing to compare.
    members = [([PROMPT, [7], FIRST, [7]], 1.0), ([PROMPT, [7], OTHER, [7]], 0.0)]
    batch = row.assign_advantages(make_batch([group([[0.0, 0.0], [0.0, 0.0]], members)]))
    np.testing.assert_allclose(by_token(batch), [[0.5 + 0.95, 0.5], [-0.5 - 0.95, -0.5]], rtol=1e-6)


def test_gigpo_std_divides_both_parts_by_their_groups_spread() -> None:
    row = get_algorithm("gigpo", adv_estimator="gigpo_std", kl_loss_coef=0.0)
    # of two values ±x the std with divisor n - 1 is √2 x, whatever x
    expected = 2 * 0.5**0.5
    np.testing.assert_allclose(
        by_token(row.assign_advantages(two_of_two_turns()))[0], [expected] * 3, rtol=1e-4
    )


def test_the_kl_in_the_reward_is_summed_over_a_trajectory() -> None:
    batch = split_batch()
    nats = (0.1, 0.2, 0.3, 0.4)
    log_ratios = {
        "old_logprobs": tuple(np.full(len(s.token_ids), -1.0, np.float32) for s in batch.samples),
        "ref_logprobs": tuple(
            np.full(len(s.token_ids), -1.0 - n, np.float32) for s, n in zip(batch.samples, nats, strict=True)
        ),
    }
    row = get_algorithm("dr_grpo", kl_coef=0.5)
    # Each has 6 sampled tokens: rewards 0, 1, 0, 1 less .3, .6, .9, 1.2; their mean is -.25
    expected = [-0.3 + 0.25, 0.4 + 0.25, -0.9 + 0.25, -0.2 + 0.25]
    advantages = [tokens[0] for tokens in by_token(row.assign_advantages(replace(batch, **log_ratios)))]
    np.testing.assert_allclose(advantages, expected, rtol=1e-5)


def test_the_kl_in_the_reward_is_the_outcomes() -> None:
    batch = two_of_two_turns()
    log_ratios = {
        "old_logprobs": tuple(np.full(len(s.token_ids), -1.0, np.float32) for s in batch.samples),
        "ref_logprobs": tuple(
            np.full(len(s.token_ids), r, np.float32) for s, r in zip(batch.samples, (-1.5, -1), strict=True)
        ),
    }
    row = get_algorithm("mt_grpo", kl_coef=0.6, turn_advantage_coef=0.0)
    # 1 - .6 · 3 tokens · .5 nats = .1, still above 0; and as much below: the signs stay, and at .7 they turn
    assert by_token(row.assign_advantages(replace(batch, **log_ratios)))[0][0] > 0
    row = get_algorithm("gigpo", kl_coef=0.7, kl_loss_coef=0.0)
    # -.05 and 0: ±.025; in the last turns -.05 and .25: ±.15
    last = by_token(row.assign_advantages(replace(batch, **log_ratios)))[0][-1]
    assert last == pytest.approx(-0.025 - 0.15, rel=1e-5)


def test_the_same_observation_in_another_group_is_another_state() -> None:
    members = [([PROMPT, [7], FIRST, [7]], 1.0), ([PROMPT, [7], OTHER, [7]], 0.0)]
    groups = [group([[0.0, 0.0]] * 2, members, index) for index in (0, 1)]
    batch = get_algorithm("gigpo", kl_loss_coef=0.0).assign_advantages(make_batch(groups))
    np.testing.assert_allclose(by_token(batch)[2:], by_token(batch)[:2])
    np.testing.assert_allclose([tokens[-1] for tokens in by_token(batch)], [0.5, -0.5, 0.5, -0.5])


def test_a_forked_trajectory_is_one_in_the_statistics_of_its_turns() -> None:
    made = group(
        [[0.0, 0.0], [0.5, 0.0]], [([PROMPT, [7], FIRST, [7]], 1.0), ([PROMPT, [7], FIRST, [7]], 0.0)]
    )
    first = made.trajectories[0]
    fork = Turn(parent=0, context_ids=tuple(OTHER), completion=first.turns[1].completion)
    forked = replace(first, turns=(*first.turns, fork))
    row = get_algorithm("mt_grpo")
    plain = by_token(row.assign_advantages(make_batch([made])))
    batch = row.assign_advantages(make_batch([replace(made, trajectories=(forked, made.trajectories[1]))]))
    leaf, other_leaf, whole = by_token(batch)
    assert (leaf, whole) == (plain[0], plain[1])
    assert other_leaf == plain[0][1:]  # the first turn is trained in the first leaf alone


def split_batch() -> TrainBatch:
    members = [([PROMPT, [7] * (1 + i), FIRST, [7] * (4 - i), OTHER, [7]], float(i % 2)) for i in range(4)]
    return make_batch([make_group(0, members)])


def test_a_turn_of_its_own_keeps_what_stood_before_it_and_its_part_of_the_weight() -> None:
    batch = split_batch()
    for sample in batch.samples:
        parts = [*by_turn(sample)]
        assert [len(part.token_ids) for part in parts] == [
            int(np.flatnonzero(sample.turn_ids == turn)[-1]) + 1 for turn in range(3)
        ]
        for part in parts:
            np.testing.assert_array_equal(part.token_ids, sample.token_ids[: len(part.token_ids)])
        assert sum(int(part.loss_mask.sum()) for part in parts) == int(sample.loss_mask.sum())
        assert sum(part.weight for part in parts) == pytest.approx(sample.weight)
    split = batch.by_turn()
    assert len(split.samples) == 12
    assert split.counts == batch.counts


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_a_trajectory_weighs_the_same_whole_or_split(mode: str) -> None:
    row = get_algorithm("grpo", loss_agg_mode=mode, kl_loss_coef=0.0)
    batch = split_batch()
    rng = np.random.default_rng(0)
    arrays = tuple(rng.normal(-1, 0.5, len(s.token_ids)).astype(np.float32) for s in batch.samples)
    batch = row.assign_advantages(replace(batch, old_logprobs=arrays))
    losses = []
    for form in (batch, batch.by_turn()):
        layout = form.padded()
        assert layout.old_logprobs is not None
        moved = layout.old_logprobs + torch.where(layout.token_ids == 7, 0.3, 0.1)
        zeros = torch.zeros_like(moved)
        losses.append(row.loss(TokenOutputs(moved, zeros, None, None, None), layout, batch.counts)[0])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[0].item() != 0


def test_a_sequences_ratio_is_a_turns_where_turns_are_samples() -> None:
    rows = [get_algorithm(name, clip_ratio_low=0.9, clip_ratio_high=9.0) for name in ("gspo", "step_gspo")]
    batch = replace(
        split_batch(), old_logprobs=tuple(np.zeros(len(s.token_ids)) for s in split_batch().samples)
    )
    whole, split = (row.assign_advantages(batch) for row in rows)
    assert (len(whole.samples), len(split.samples)) == (4, 12)
    assert [float(tokens[0]) for tokens in by_token(split)] == [
        float(tokens[0]) for tokens in by_token(whole) for _ in range(3)
    ]
    layout = split.padded()
    moved = torch.where(layout.loss_mask, torch.linspace(-1, 1, len(split.samples))[:, None], 0.0)
    metrics = metric_values(evaluate(rows[1], moved, layout)[2])
    # one ratio a turn, from exp(-1) to exp(1)
    assert metrics["policy/ratio_min"] == pytest.approx(np.exp(-1), rel=1e-5)
    assert metrics["policy/ratio_max"] == pytest.approx(np.exp(1), rel=1e-5)


def test_step_wise_is_refused_where_it_changes_nothing() -> None:
    with pytest.raises(ValueError, match=r"step_wise = True has no effect.*split or whole"):
        get_algorithm("grpo", step_wise=True, rollout_is="none")


def test_gdpo_normalizes_every_part_and_whitens_their_weighted_sum() -> None:
    members = [([PROMPT, [7]], 1.0), ([PROMPT, [7], FIRST, [7]], 0.0)]
    batch = make_batch([make_group(0, members)])
    assert batch.reward_parts is not None
    np.testing.assert_array_equal(batch.reward_parts["calls"], [2, 4])
    ours = by_token(
        get_algorithm("gdpo", reward_weights={"answer": 1.0, "calls": 0.25}).assign_advantages(batch)
    )
    # answer: ±.70711 (less the eps); calls: ∓.70711, a quarter of it: ±.53033; whitened over 1 and 2 tokens:
    # mean -.17678, variance (.70711² + 2 · .35355²) / 2 = .375
    x = 0.75 * 0.5 / (0.5**0.5 + 1e-6)
    std = (((4 / 3 * x) ** 2 + 2 * (2 / 3 * x) ** 2) / 2 + 1e-8) ** 0.5
    np.testing.assert_allclose(ours[0], [4 / 3 * x / std], rtol=1e-5)
    np.testing.assert_allclose(ours[1], [-2 / 3 * x / std] * 2, rtol=1e-5)


def test_gdpo_refuses_a_part_that_not_every_score_has() -> None:
    batch = make_batch([make_group(0, [([PROMPT, [7]], 1.0), ([PROMPT, [7]], 0.0)])])
    with pytest.raises(ValueError, match=r"'anser'.*did you mean 'answer'"):
        get_algorithm("gdpo", reward_weights={"anser": 1.0}).assign_advantages(batch)
    parts = {"answer": batch.rewards, "judge/style": np.array([0.0, 1.0])}  # a part of a part counts in it
    row = get_algorithm("gdpo")
    assert by_token(row.assign_advantages(replace(batch, reward_parts=parts)))[0][0] > 0.5
    with pytest.raises(ValueError, match="none in common"):
        get_algorithm("gdpo").assign_advantages(replace(batch, reward_parts={}))


def test_vapos_lambda_is_by_length_and_the_critics_is_its_own() -> None:
    row = get_algorithm("vapo", length_adaptive_alpha=0.4, lam=0.25)
    members = [([PROMPT, [7] * 5], 1.0), ([PROMPT, [7] * 4], 0.0)]
    batch = make_batch([make_group(0, members)])
    values = tuple(np.where(s.loss_mask, 0.2, 0).astype(np.float32) for s in batch.samples)
    weighed = row.assign_advantages(replace(batch, old_values=values, old_logprobs=values))
    assert weighed.returns is not None
    # δ is .8 at the last token and 0 before. Returns: .2 + .8 · .25^k. Advantages: λ = 1 - 1 / (.4 · 5) = .5;
    # of the other row, with δ = -.2, λ = 1 - 1 / 1.6 = .375. Whitened, differences keep their proportions.
    np.testing.assert_allclose(weighed.returns[0][2:], 0.2 + 0.8 * 0.25 ** np.arange(4, -1, -1), rtol=1e-5)
    np.testing.assert_allclose(weighed.returns[1][2:], 0.2 - 0.2 * 0.25 ** np.arange(3, -1, -1), rtol=1e-5)
    one, other = by_token(weighed)
    assert (one[4] - one[3]) / (one[3] - one[2]) == pytest.approx(2.0, rel=1e-3)
    assert (other[3] - other[2]) / (other[2] - other[1]) == pytest.approx(1 / 0.375, rel=1e-3)


def test_kl_coef_follows_the_kl_that_the_rewards_pay_for() -> None:
    row = get_algorithm("rloo", kl_coef=0.1, target_kl=0.2, kl_horizon=100.0)
    batch = split_batch()
    arrays = {
        "old_logprobs": tuple(np.full(len(s.token_ids), -1.0, np.float32) for s in batch.samples),
        "ref_logprobs": tuple(np.full(len(s.token_ids), -1.22, np.float32) for s in batch.samples),
    }
    facts = row.assign_advantages(replace(batch, **arrays)).facts
    assert facts["policy/kl_coef"] == 0.1
    assert facts["policy/kl_in_reward"] == pytest.approx(0.22)
    # .22 is 10 % above the target: 0.1 · (1 + .1 · 4 / 100); and a fifth at most: 0.1 · (1 - .2 · 4 / 100)
    step = {**facts, "rollout/trajectories": 4.0}
    assert row.after_step(step).kl_coef == pytest.approx(0.1004)
    assert row.after_step({**step, "policy/kl_in_reward": 0.0}).kl_coef == pytest.approx(0.0992)
    assert replace(row, target_kl=None).after_step(step) == replace(row, target_kl=None)
