"""Every row of the table: where it differs from its parent, and what garbage at masked positions changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.advantages import group_centered, rloo
from rl.algorithms import ALGORITHMS, get_algorithm, knobs_of
from rl.batch import TOKEN_ARRAYS, TrainBatch, make_batch
from rl.credit import CREDITS, register_estimator
from rl.numerics import metric_values
from rl.rules import RULE_KNOBS, RULES, RuleLoss, counted, register_rule
from tests.rl.making import evaluate, random_layout
from tests.tiny import make_group

ROWS = sorted(ALGORITHMS)
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e9)

GATE = ("default", {"policy_loss", "clip_ratio_high", "clip_ratio_c"})
PARENTS = {
    "dr_grpo": ("grpo", {"adv_estimator", "loss_agg_mode", "loss_scale_factor", "kl_loss_coef"}),
    "dapo": (
        "grpo",
        {"clip_ratio_high", "drop_uniform_groups", "dynamic_sampling", "loss_agg_mode", "kl_loss_coef"},
    ),
    "rloo": ("grpo", {"adv_estimator", "loss_agg_mode", "kl_loss_coef", "kl_coef"}),
    "gspo": ("grpo", {"importance_sampling_level", "clip_ratio_low", "clip_ratio_high", "kl_loss_coef"}),
    "cispo": ("grpo", {"adv_estimator", "policy_loss", "loss_agg_mode", "kl_loss_coef"}),
    "default": (
        "grpo",
        {
            *("adv_estimator", "drop_uniform_groups", "clip_ratio_high", "clip_ratio_c"),
            *("loss_agg_mode", "kl_loss_coef"),
        },
    ),
    "reinforce_pp": ("grpo", {"adv_estimator", "loss_agg_mode", "kl_loss_coef", "kl_coef"}),
    "reinforce_pp_baseline": ("reinforce_pp", {"adv_estimator", "kl_coef"}),
    "ppo": (
        "grpo",
        {"adv_estimator", "clip_ratio_c", "loss_agg_mode", "kl_loss_coef", "kl_coef", "critic"},
    ),
    "gmpo": ("grpo", {"policy_loss", "clip_ratio_low", "clip_ratio_high", "kl_loss_coef"}),
    "vapo": (
        "ppo",
        {"adv_estimator", "clip_ratio_high", "clip_ratio_c", "kl_coef"},
    ),
    "gdpo": ("grpo", {"adv_estimator", "loss_agg_mode", "kl_loss_coef"}),
    "spo": ("default", {"adv_estimator", "drop_uniform_groups", "clip_ratio_c"}),
    "maxrl": ("default", {"adv_estimator"}),
    "mt_grpo": ("grpo", {"adv_estimator"}),
    "gigpo": ("grpo", {"adv_estimator", "gamma", "loss_agg_mode", "kl_loss_coef"}),
    "step_gspo": ("gspo", {"step_wise"}),
    "opsd": ("opd", {"hint"}),
    "roc": ("grpo", {"oversample", "clip_ratio_high", "loss_agg_mode", "kl_loss_coef"}),
    **dict.fromkeys(("sapo", "dppo", "kimi", "topr", "opmd"), GATE),
}
ORIGINALS = {"grpo", "reinforce", "opd", "jsd"}


def test_every_row_is_an_original_or_differs_from_its_parent():
    assert PARENTS.keys() | ORIGINALS == ALGORITHMS.keys()


@pytest.mark.parametrize("name", PARENTS)
def test_a_row_differs_from_its_parent_only_where_its_paper_does(name):
    parent, differs = PARENTS[name]
    ours, theirs = knobs_of(ALGORITHMS[name]), knobs_of(ALGORITHMS[parent])
    assert {knob for knob in ours if ours[knob] != theirs[knob]} == differs


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ROWS)
def test_garbage_at_masked_positions_changes_no_bit_of_loss_gradient_or_metrics(name, garbage):
    logprobs, layout = random_layout()
    row = ALGORITHMS[name]
    clean = evaluate(row, logprobs, layout, entropy=torch.ones_like(logprobs))

    def spoil(x: torch.Tensor) -> torch.Tensor:
        return torch.where(layout.loss_mask, x, garbage)

    tensors = {tensor: spoil(getattr(layout, tensor)) for tensor in ("rollout_logprobs", *TOKEN_ARRAYS)}
    spoilt = evaluate(
        row, spoil(logprobs), replace(layout, **tensors), entropy=spoil(torch.ones_like(logprobs))
    )
    assert torch.equal(spoilt[0], clean[0])
    assert torch.equal(spoilt[1], clean[1])
    assert metric_values(spoilt[2]) == metric_values(clean[2])


def scored_batch(masked: float) -> TrainBatch:
    """Two groups of four multi-turn trajectories, every array made, `masked` where nothing was sampled."""
    members = [([[5, 6], [7] * (1 + i), [8, 9], [7] * 2], (i % 3) / 2) for i in range(4)]
    batch = make_batch([make_group(g, members) for g in range(2)])
    rng = np.random.default_rng(0)

    def made(like: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask, -rng.random(like.shape), masked).astype(np.float32)

    arrays = {
        name: tuple(made(s.token_ids, s.loss_mask) for s in batch.samples)
        for name in ("old_logprobs", "ref_logprobs", "teacher_logprobs", "old_values")
    }
    samples = tuple(replace(s, rollout_logprobs=made(s.token_ids, s.loss_mask)) for s in batch.samples)
    return replace(batch, samples=samples, **arrays)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ROWS)
def test_garbage_at_masked_positions_changes_no_bit_of_an_advantage_or_return(name, garbage):
    row = ALGORITHMS[name]
    clean, spoilt = (row.start().assign_advantages(scored_batch(masked)) for masked in (0.0, garbage))
    for arrays in ("advantages", "returns"):
        ours, theirs = getattr(spoilt, arrays), getattr(clean, arrays)
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or (), theirs or (), strict=True):
            np.testing.assert_array_equal(one, other)
    assert any(array.any() for array in clean.advantages)


@pytest.mark.parametrize("name", ROWS)
def test_a_step_in_which_nothing_was_scored_is_an_empty_batch(name):
    scored = replace(make_batch([]), **dict.fromkeys(TOKEN_ARRAYS[:4], ()))
    batch = ALGORITHMS[name].start().assign_advantages(scored)
    assert batch.advantages == ()
    assert [part.samples for part in replace(batch, facts={}).minibatches(1)] == [()]


@pytest.fixture
def registers():
    """Registrations that are undone when the test is over."""
    tables = (RULES, RULE_KNOBS, CREDITS)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.mark.usefixtures("registers")
def test_a_registered_rule_is_held_to_reinforces_gradient_on_policy_like_any_row():
    def powered(x, knobs):  # -A r^p / p
        ratio = (knobs["p"] * x.log_ratio.clamp(-20, 20)).exp()
        return RuleLoss(-x.advantages * ratio / knobs["p"], counted(x))

    register_rule("powered", powered, p=0.5)
    logprobs, layout = random_layout(spread=0.0)
    layout = replace(layout, rollout_logprobs=layout.old_logprobs)
    reinforce = get_algorithm("reinforce", loss_agg_mode="token-mean")
    for knobs in ({}, {"rule_knobs": {"p": 2.0}}):
        row = get_algorithm("default", policy_loss="powered", **knobs)
        gradients = (evaluate(each, logprobs, layout)[1] for each in (row, reinforce))
        torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("registers")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda rewards, group_ids: rewards[:-1],
            r"'mine' returned \(7,\) with 0 .*expected \(8,\), all finite",
        ),
        (lambda rewards, group_ids: rewards.sum(), r"'mine' returned \(\) with 0 .*expected \(8,\)"),
        (
            lambda rewards, group_ids: rewards / 0.0,
            r"'mine' returned \(8,\) with 8 numbers that are not finite",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_registered_estimator_of_the_wrong_shape_is_told_what_is_expected(function, message):
    register_estimator("mine", function)
    with pytest.raises(ValueError, match=message):
        get_algorithm("grpo", adv_estimator="mine").assign_advantages(scored_batch(0.0))
    with pytest.raises(ValueError, match="'mine' exists already: give yours another name"):
        register_estimator("mine", function)


def test_a_users_row_must_be_a_row(tmp_path):
    (tmp_path / "mine.py").write_text("ROW = {'name': 'mine'}\n")
    with pytest.raises(ValueError, match="is a dict; expected a PolicyGradient"):
        get_algorithm(f"{tmp_path}/mine.py:ROW")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *[(name, "old_logprobs") for name in ("grpo", "ppo", "cispo", "kimi")],
        ("grpo", "ref_logprobs"),
        ("ppo", "returns"),
        *[(name, "advantages") for name in ROWS],
    ],
)
def test_a_loss_without_what_it_needs_is_an_error_and_not_zeros(name, missing):
    logprobs, layout = random_layout()
    with pytest.raises(ValueError, match=f"'{name}' needs {missing}, which the batch lacks: call "):
        evaluate(ALGORITHMS[name], logprobs, replace(layout, **{missing: None}))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *[(name, "ref_logprobs") for name in ("rloo", "reinforce_pp", "ppo")],
        ("ppo", "old_values"),
        ("opd", "teacher_logprobs"),
    ],
)
def test_an_advantage_without_what_it_needs_is_an_error_and_not_zeros(name, missing):
    batch = replace(scored_batch(0.0), **{missing: None})
    with pytest.raises(ValueError, match=f"'{name}' needs {missing}, which the batch lacks: call learner"):
        ALGORITHMS[name].assign_advantages(batch)


def test_a_critic_algorithm_without_a_value_model_says_which_there_are():
    with pytest.raises(ValueError, match="'gae' needs the values of a critic; set critic to 'head'"):
        get_algorithm("ppo", critic="none")
    with pytest.raises(ValueError, match="critic 'head' has no effect: adv_estimator 'grpo' uses no values"):
        get_algorithm("grpo", critic="head")


def test_rloo_is_the_centred_reward_of_dr_grpo_times_n_over_n_minus_1():
    sizes = (2, 3, 5, 8)
    group_ids = np.repeat(np.arange(len(sizes)), sizes)
    rewards = np.random.default_rng(0).normal(size=group_ids.size)
    n = np.repeat(sizes, sizes)
    np.testing.assert_allclose(rloo(rewards, group_ids), n / (n - 1) * group_centered(rewards, group_ids))
