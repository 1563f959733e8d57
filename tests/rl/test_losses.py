"""The pieces of the loss against their definitions."""

import math

import pytest
import torch

from rl.batch import LossCounts
from rl.losses import (
    LOSS_AGG_MODES,
    ROLLOUT_IS,
    Bounds,
    at_level,
    clamp_log_ratio,
    kl_penalty,
    rollout_weights,
    surrogate,
    token_norm,
)

PPO = Bounds((None, math.log(1.28)), (math.log(0.8), math.log(3.0)), "clamp")
F64 = torch.float64


def gradient(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(values.sum(), x, retain_graph=True)[0]


def test_the_clamped_surrogate_is_ppos_maximum_with_dual_clip():
    generator = torch.Generator().manual_seed(0)
    d = (1.5 * torch.randn(500, generator=generator, dtype=F64)).requires_grad_()
    advantages = torch.randn(500, generator=generator, dtype=F64)
    ratio = d.exp()
    ppo = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.28))
    definition = torch.where(advantages < 0, torch.minimum(ppo, -3.0 * advantages), ppo)
    ours, _ = surrogate(torch.zeros_like(d), d, advantages, PPO)
    torch.testing.assert_close(ours, definition)
    torch.testing.assert_close(gradient(ours, d), gradient(definition, d))


def test_clip_counters_name_the_side():
    log_ratio = torch.tensor([-1.0, -1.0, 1.0, 1.0, 2.0, 1.0, 0.1])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 0.0, 1.0])
    # below and A>0: open. below and A<0: low. above and A>0: high. e < 3: inside. e² > 3: dual. A=0: nothing.
    _, clipped = clamp_log_ratio(log_ratio, advantages, PPO)
    assert clipped.low.int().tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert clipped.high.int().tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert clipped.dual.int().tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert not clipped.net.any()


def test_an_open_side_is_held_by_the_net_and_counted():
    log_ratio = torch.tensor([1000.0, -1000.0], requires_grad=True)
    values, clipped = surrogate(
        torch.zeros(2), log_ratio, torch.tensor([-1.0, 1.0]), Bounds((None, 0.1), (-0.1, None), "clamp")
    )
    torch.testing.assert_close(values.detach(), torch.tensor([math.exp(20), -math.exp(-20)]))
    assert gradient(values, log_ratio).tolist() == [0.0, 0.0]
    assert clipped.net.tolist() == [True, True]
    assert not (clipped.low | clipped.high | clipped.dual).any()


def test_stop_weighs_the_log_probability_everywhere():
    # CISPO, cap 5: A = 2, r = e² -> 5: -2 · 5 · log π; r = e: -2 · e · log π
    logprobs = torch.tensor([-0.7, -0.3], dtype=F64, requires_grad=True)
    bounds = Bounds((None, math.log(5)), (None, math.log(5)), "stop")
    values, _ = surrogate(
        logprobs, logprobs - logprobs.detach() + torch.tensor([2.0, 1.0]), torch.full((2,), 2.0), bounds
    )
    torch.testing.assert_close(values.detach(), torch.tensor([7.0, 0.6 * math.e], dtype=F64))
    torch.testing.assert_close(gradient(values, logprobs), torch.tensor([-10.0, -2 * math.e], dtype=F64))


def test_row_ratios_are_the_mean_and_the_product_over_kept_tokens():
    log_ratio = torch.tensor([[0.2, 0.0, 0.4], [0.0, 0.0, 0.0]], dtype=F64, requires_grad=True)
    kept = torch.tensor([[True, False, True], [False, False, False]])
    mean, product = (at_level(log_ratio, kept, level) for level in ("sequence", "product"))
    torch.testing.assert_close(mean.detach(), torch.tensor([[0.3, 0.0, 0.3], [0, 0, 0]], dtype=F64))
    torch.testing.assert_close(product.detach(), torch.tensor([[0.6, 0.0, 0.6], [0, 0, 0]], dtype=F64))


def test_the_row_ratio_has_the_gradient_of_the_mean_itself():
    log_ratio = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    kept = torch.ones(3, 5, dtype=torch.bool)
    ours = at_level(log_ratio, kept, "sequence").exp()
    definition = log_ratio.mean(1, keepdim=True).exp().expand(3, 5)
    torch.testing.assert_close(gradient(ours, log_ratio), gradient(definition, log_ratio))


def test_product_ratios_of_long_rows_saturate_instead_of_overflowing():
    log_weight = torch.full((1, 32_768), 1e-2)  # e^327
    kept = torch.ones_like(log_weight, dtype=torch.bool)
    weights = rollout_weights(log_weight, kept, ROLLOUT_IS["seq_tis"], low=0.5, high=2.0)
    torch.testing.assert_close(weights.weight, torch.full_like(log_weight, 2.0))
    assert weights.capped.all()


@pytest.mark.parametrize(
    ("mode", "expected", "capped", "masked"),
    [
        ("token_tis", [0.25, 1.0, 2.0], [0, 0, 1], [0, 0, 0]),
        ("token_icepop", [0.0, 1.0, 0.0], [0, 0, 0], [1, 0, 1]),
        ("seq_tis", [1.0, 1.0, 1.0], [0, 0, 0], [0, 0, 0]),  # product 1/4 · 1 · 4
        ("seq_mis", [1.0, 1.0, 1.0], [0, 0, 0], [0, 0, 0]),
        ("geo_tis", [1.0, 1.0, 1.0], [0, 0, 0], [0, 0, 0]),
        ("geo_mask_token_is", [0.25, 1.0, 4.0], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_rollout_weights_by_hand(mode, expected, capped, masked):
    log_weight = torch.tensor([[0.25, 1.0, 4.0]], dtype=F64).log()
    kept = torch.ones(1, 3, dtype=torch.bool)
    weights = rollout_weights(log_weight, kept, ROLLOUT_IS[mode], low=0.5, high=2.0)
    torch.testing.assert_close(weights.weight, torch.tensor([expected], dtype=F64))
    assert weights.capped.int().tolist() == [capped]
    assert weights.masked.int().tolist() == [masked]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_unbiased_kl_gradient_is_the_reverse_kls_in_expectation(estimator):
    # Exact over a distribution that can be enumerated: Σ_y π_old(y) ∇ (r k) = ∇ KL(π ‖ ref).
    generator = torch.Generator().manual_seed(3)
    logits, old, ref = (torch.randn(6, dtype=F64, generator=generator) for _ in range(3))
    logits.requires_grad_()
    logprobs, old, ref = logits.log_softmax(0), old.log_softmax(0), ref.log_softmax(0)
    kl = (logprobs.exp() * (logprobs - ref)).sum()
    penalty = kl_penalty(logprobs, ref, logprobs - old, kl_loss_type=estimator, kl_gradient="unbiased")
    torch.testing.assert_close(gradient(old.exp() * penalty, logits), gradient(kl, logits))


def test_the_unbiased_kl_still_pulls_at_100_nats():
    logprobs = torch.tensor([-101.0, -1.0], requires_grad=True)
    penalty = kl_penalty(
        logprobs, torch.tensor([-1.0, -101.0]), torch.zeros(2), kl_loss_type="k3", kl_gradient="unbiased"
    )
    assert penalty.isfinite().all()
    assert gradient(penalty, logprobs).tolist() == [-100.0, 100.0]


def test_aggregation_constants_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    counts = LossCounts(num_tokens=4, num_sequences=2)
    expected = {
        "token-mean": (1 / 4, 1 / 4),
        "token-sum": (1.0, 1.0),
        "seq-mean-token-mean": (1 / 6, 1 / 2),
        "seq-mean-token-sum": (1 / 2, 1 / 2),
        "seq-mean-token-sum-norm": (1 / 20, 1 / 20),
    }
    assert set(expected) == set(LOSS_AGG_MODES)
    for mode, (first, second) in expected.items():
        norm = token_norm(mask, torch.ones(3), counts, loss_agg_mode=mode, scale=10.0)
        rows = torch.tensor([[first] * 3 + [0], [0, second, 0, 0], [0] * 4], dtype=F64)
        torch.testing.assert_close(norm, rows)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_a_trajectory_weighs_the_same_however_its_tree_is_cut(mode):
    # One row of 4 trained tokens, or two rows of 3 and 1 with weights 3/4 and 1/4.
    counts = LossCounts(num_tokens=4, num_sequences=1)
    knobs = {"loss_agg_mode": mode, "scale": 10.0}
    whole = token_norm(torch.ones(1, 4, dtype=torch.bool), torch.ones(1), counts, **knobs)
    cut_mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    cut = token_norm(cut_mask, torch.tensor([0.75, 0.25]), counts, **knobs)
    torch.testing.assert_close(cut[cut_mask], whole[0])
