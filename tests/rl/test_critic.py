"""The critic's loss and its metrics, SPO's tracker, the KL's controllers, with the arithmetic."""

import math

import numpy as np
import pytest
import torch

from rl.advantages import spo
from rl.critic import (
    CRITIC_METRICS,
    AdaptiveKlController,
    BetaTracker,
    FixedKlController,
    explained_variance_share,
    value_loss,
)
from rl.numerics import add_metrics, metric_values

MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


def rows(dtype=torch.float64, *, seed=0, size=(6, 9)):
    """Values (with gradient), old values, returns and a mask."""
    generator = torch.Generator().manual_seed(seed)
    values, old, returns = (torch.randn(size, generator=generator, dtype=dtype) for _ in range(3))
    mask = torch.rand(size, generator=generator) < 0.6
    return values.requires_grad_(), old, returns, mask


def test_value_loss_by_hand():
    # c = .5, V_old = 0, R = 1. V = 2: held at .5, max(1, .25) = 1 with gradient; V = .8: held at .5,
    # max(.04, .25) = .25, clipped and constant; V = -.2: inside, 1.44. Half of 2.69 over three tokens.
    values = torch.tensor([[2.0, 0.8, 7.0], [-0.2, 7.0, 7.0], [7.0] * 3], requires_grad=True)
    zeros, ones = torch.zeros(MASK.shape), torch.ones(MASK.shape)
    loss, sums = value_loss(values, zeros, ones, MASK, cliprange_value=0.5, num_tokens=3)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(2.69 / 6))
    torch.testing.assert_close(values.grad, torch.tensor([[1 / 3, 0, 0], [-0.4, 0, 0], [0.0] * 3]))
    metrics = metric_values(sums)
    assert metrics["critic/clip_frac"] == pytest.approx(1 / 3)
    assert metrics["critic/value_mean"] == pytest.approx(2.6 / 3)
    assert metrics["critic/value_loss"] == pytest.approx(2.69 / 6)
    assert "critic/explained_variance" not in metrics  # returns that are all equal have nothing to explain


def test_without_a_range_it_is_half_the_mean_squared_error():
    values, old, returns, mask = rows()
    loss, sums = value_loss(values, old, returns, mask, cliprange_value=None, num_tokens=int(mask.sum()))
    torch.testing.assert_close(loss, 0.5 * (values - returns)[mask].square().mean())
    assert metric_values(sums)["critic/clip_frac"] == 0.0


def test_clipping_never_makes_the_loss_smaller_and_a_wide_range_never_clips():
    values, old, returns, mask = rows()
    plain, narrow, wide = (
        value_loss(values, old, returns, mask, cliprange_value=c, num_tokens=10)[0].item()
        for c in (None, 0.2, 100.0)
    )
    assert narrow > plain
    assert wide == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_inside_the_range_are_not_counted_as_clipped_by_their_rounding(dtype):
    values, _, returns, mask = rows(torch.float32)
    values, old = values.detach().to(dtype), (values.detach() + 0.1).to(dtype)
    _, sums = value_loss(values, old, returns.to(dtype), mask, cliprange_value=0.2, num_tokens=10)
    assert metric_values(sums)["critic/clip_frac"] == 0.0


def test_explained_variance_is_one_less_the_share_of_variance_that_is_left():
    values, old, returns, mask = rows()
    _, sums = value_loss(values, old, returns, mask, cliprange_value=0.2, num_tokens=10)
    r, v = returns[mask].numpy(), values.detach()[mask].numpy()
    explained = metric_values(sums)["critic/explained_variance"]
    assert explained == pytest.approx(1.0 - np.var(r - v) / np.var(r))
    _, sums = value_loss(returns + 5.0, old, returns, mask, cliprange_value=None, num_tokens=10)
    assert metric_values(sums)["critic/explained_variance"] == pytest.approx(1.0)  # a bias is not variance


def test_micro_batches_add_up_in_loss_gradient_and_metrics():
    values, old, returns, mask = rows()
    count = int(mask.sum())
    whole, sums = value_loss(values, old, returns, mask, cliprange_value=0.2, num_tokens=count)
    (gradient,) = torch.autograd.grad(whole, values)
    parts = [
        value_loss(*(x[part] for x in (values, old, returns, mask)), cliprange_value=0.2, num_tokens=count)
        for part in (slice(0, 1), slice(1, 4), slice(4, None))
    ]
    total = torch.stack([loss for loss, _ in parts]).sum()
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, values)[0], gradient)
    together, apart = metric_values(sums), metric_values(add_metrics(shares for _, shares in parts))
    assert together == pytest.approx(apart)
    assert set(together) == set(CRITIC_METRICS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e9])
def test_what_is_masked_is_never_read(dtype, garbage):
    values, old, returns, mask = rows(dtype)
    clean, _ = value_loss(values, old, returns, mask, cliprange_value=0.2, num_tokens=10)
    leaf, old, returns = (torch.where(mask, x.detach(), garbage) for x in (values, old, returns))
    dirty, _ = value_loss(leaf.requires_grad_(), old, returns, mask, cliprange_value=0.2, num_tokens=10)
    assert dirty.item() == clean.item()
    assert torch.equal(torch.autograd.grad(dirty, leaf)[0], torch.autograd.grad(clean, values)[0])
    assert dirty.dtype is dtype


def test_a_trained_token_that_is_not_finite_leaves_the_loss_and_stays_in_the_denominator():
    values = torch.tensor([[2.0, 3.0, 0.0]], requires_grad=True)
    returns = torch.tensor([[0.0, float("nan"), 0.0]])
    mask = torch.tensor([[True, True, False]])
    loss, _ = value_loss(values, torch.zeros(1, 3), returns, mask, cliprange_value=None, num_tokens=2)
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss.item() == 1.0  # ½ · 2² / 2
    assert gradient.tolist() == [[1.0, 0.0, 0.0]]


def test_nothing_to_train_on_is_zero_with_a_graph():
    values, old, returns, mask = rows()
    loss, sums = value_loss(values, old, returns, torch.zeros_like(mask), cliprange_value=0.2, num_tokens=0)
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss.item() == 0.0
    assert not gradient.any()
    assert metric_values(sums) == {"critic/value_loss": 0.0}


def test_bfloat16_values_are_trained_in_float32():
    values, old, returns, mask = rows(torch.bfloat16)
    loss, _ = value_loss(values, old, returns, mask, cliprange_value=0.2, num_tokens=10)
    values, old, returns = (x.detach().double() for x in (values, old, returns))
    exact, _ = value_loss(values, old, returns, mask, cliprange_value=0.2, num_tokens=10)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_tracker_starts_with_eight_pseudo_counts():
    # 1 / (1 - .875) = 8, half and half; of 3 successes in 3: (3 + .5) / 4 = .875
    assert BetaTracker.start() == BetaTracker(4.0, 4.0)
    assert BetaTracker.start([1, 1, 1]) == BetaTracker(7.0, 1.0)
    assert BetaTracker(7.0, 1.0).value == 0.875
    assert BetaTracker(7.0, 1.0).sampling_weight == pytest.approx(math.sqrt(0.875 * 0.125) + 0.05)


@pytest.mark.parametrize(("divergence", "rho"), [(0.0, 0.96), (0.006, 2**-0.1), (0.06, 0.875), (5.0, 0.875)])
def test_a_tracker_forgets_faster_the_more_the_policy_has_moved(divergence, rho):
    after = BetaTracker(4.0, 2.0).update(0.25, divergence)
    assert (after.alpha, after.beta) == pytest.approx((4 * rho + 0.25, 2 * rho + 0.75))


def test_a_tracker_comes_to_the_success_rate_of_a_policy_that_stays():
    tracker = BetaTracker.start()
    for index in range(300):
        tracker = tracker.update(float(index % 4 == 0), 0.0)
    assert tracker.value == pytest.approx(0.25, abs=0.02)
    assert tracker.alpha + tracker.beta == pytest.approx(25.0, rel=1e-3)  # 1 / (1 - .96)
    # Read before the update, it is SPO's baseline.
    pair = [tracker, BetaTracker.start()]
    advantages = spo(np.ones(2), *np.array([(t.alpha, t.beta) for t in pair]).T)
    assert advantages[0] > 0 > advantages[1]


@pytest.mark.parametrize(
    ("reward", "divergence", "name"),
    [(1.5, 0.0, "reward = 1.5"), (1.0, -0.1, "divergence"), (1.0, np.nan, "nan")],
)
def test_a_tracker_refuses_what_is_no_success_rate(reward, divergence, name):
    with pytest.raises(ValueError, match=name):
        BetaTracker.start().update(reward, divergence)


def test_the_adaptive_controller_by_hand():
    # Target 6, 100 trajectories of 1000. KL 6.6: error .1, β 1.01 times; KL 60: .2, 1.02; KL 0: -.2, .98
    controller = AdaptiveKlController(kl_coef=0.2, target_kl=6.0, horizon=1000)
    coefs = []
    for kl in (6.6, 60.0, 0.0, 6.0):
        controller = controller.update(kl, 100)
        coefs.append(controller.kl_coef)
    expected = [0.2 * 1.01, 0.2 * 1.01 * 1.02, 0.2 * 1.01 * 1.02 * 0.98, 0.2 * 1.01 * 1.02 * 0.98]
    assert coefs == pytest.approx(expected, rel=1e-14)


def test_a_controller_never_lets_a_kl_that_is_not_finite_in():
    controller = AdaptiveKlController(kl_coef=0.2, target_kl=6.0, horizon=1000)
    for kl in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            controller.update(kl, 100)


@pytest.mark.parametrize("name", ["target_kl", "horizon"])
def test_a_controller_needs_a_target_and_a_horizon(name):
    with pytest.raises(ValueError, match=f"{name} = 0"):
        AdaptiveKlController(**{"kl_coef": 0.1, "target_kl": 1.0, "horizon": 10.0, name: 0})


def test_the_fixed_controller_stays():
    controller = FixedKlController(kl_coef=0.1)
    assert controller.update(50.0, 100) is controller


def test_returns_that_are_equal_but_for_rounding_explain_nothing():
    # n Σy² - (Σy)² of 55 times 0.1 is rounding and not 0; what is divided by it is no share of anything.
    returns = torch.full((1, 55), 0.1, dtype=torch.float64)
    share = explained_variance_share(returns, torch.linspace(0, 1, 55)[None], torch.ones(1, 55).bool())
    assert share.value() is None
