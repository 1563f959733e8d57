"""Log-space primitives, group statistics, and shares of metrics."""

import math

import numpy as np
import pytest
import torch

from rl.numerics import (
    Share,
    add_metrics,
    bounded_exp,
    ess_share,
    group_statistics,
    k2,
    k3,
    loss_dtype,
    max_share,
    mean_share,
    metric_values,
    min_share,
    on_host,
    select,
    sum_share,
)


def test_select_before_exp_keeps_value_and_gradient_clean():
    x = torch.tensor([0.5, 1000.0, float("nan"), -float("inf")], requires_grad=True)
    mask = torch.tensor([True, False, False, False])
    select(mask, x).exp().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(0.5), 0.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_losses_are_computed_in_float32_or_wider(dtype, expected):
    x = torch.ones(1, dtype=dtype)
    assert loss_dtype(x) is expected
    assert select(x > 0, x).dtype is expected


def test_bounded_exp_of_a_thousand_nats_is_e_to_the_20_with_no_gradient():
    x = torch.tensor([1000.0, -1000.0, 0.0], requires_grad=True)
    y = bounded_exp(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), torch.tensor([math.exp(20), math.exp(-20), 1.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 1.0]


def test_k3_is_finite_never_negative_and_meets_its_expansion():
    d = torch.tensor([-100.0, -1e-3, 0.0, 1e-3, 0.1249, 0.1251, 100.0], requires_grad=True)
    values = k3(d)
    values.sum().backward()
    assert d.grad is not None
    assert values.isfinite().all()
    assert d.grad.isfinite().all()
    assert (values >= 0).all()
    # d²/2 + d³/6 at ±1e-3; naive float32 is 5 % off here
    assert values[1].item() == pytest.approx(5e-7 - 1e-9 / 6, rel=1e-6)
    assert values[3].item() == pytest.approx(5e-7 + 1e-9 / 6, rel=1e-6)
    exact = [math.expm1(x) - x for x in (0.1249, 0.1251)]
    assert values[4:6].tolist() == pytest.approx(exact, rel=2e-6)


def test_k2_is_half_the_square():
    assert k2(torch.tensor([-2.0, 3.0])).tolist() == [2.0, 4.5]


def test_group_statistics_by_hand():
    # group 7: 1, 0, 0.5, 1: mean 0.625, squares .140625+.390625+.015625+.140625 = .6875, /3 -> std .478714
    rewards = np.array([1.0, 0.3, 0.0, 0.5, 0.3, 1.0, 0.9])
    statistics = group_statistics(rewards, np.array([7, 2, 7, 7, 2, 7, 5]))
    assert statistics.mean.tolist() == [0.625, 0.3, 0.625, 0.625, 0.3, 0.625, 0.9]
    np.testing.assert_allclose(statistics.std[[0, 6]], [math.sqrt(0.6875 / 3), 0.0])
    assert statistics.size.tolist() == [4, 2, 4, 4, 2, 4, 1]
    assert statistics.uniform.tolist() == [False, True, False, False, True, False, False]
    assert statistics.informative.tolist() == [True, False, True, True, False, True, False]


def test_the_std_of_large_rewards_does_not_cancel():
    rewards = np.array([999.99, 1000.0, 1000.01])
    np.testing.assert_allclose(group_statistics(rewards, np.zeros(3)).std, 0.01, rtol=1e-9)


def test_a_difference_of_rounding_is_uniform_and_a_small_real_one_is_not():
    assert group_statistics(np.array([0.1, 0.1 + 1e-9]), np.zeros(2)).uniform.all()
    assert not group_statistics(np.array([0.1, 0.1 + 1e-5]), np.zeros(2)).uniform.any()


def test_shares_of_any_split_add_up_to_the_whole():
    x = torch.arange(1.0, 9.0)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    kept = [1.0, 3.0, 4.0, 6.0, 7.0]

    def shares(part: slice) -> dict[str, Share]:
        return {
            "mean": mean_share(x[part], mask[part]),
            "max": max_share(x[part], mask[part]),
            "min": min_share(x[part], mask[part]),
            "ess": ess_share(x[part], mask[part]),
            "sum": sum_share(x[part]),
        }

    expected = {
        "mean": 21 / 5,
        "max": 7.0,
        "min": 1.0,
        "ess": 21**2 / (5 * sum(v * v for v in kept)),  # 441 / (5 · 111)
        "sum": 36.0,
    }
    assert metric_values(shares(slice(None))) == pytest.approx(expected)
    parts = [shares(part) for part in (slice(0, 1), slice(1, 2), slice(2, 8))]
    assert metric_values(add_metrics(parts)) == pytest.approx(expected)


def test_on_host_keeps_every_share():
    x = torch.arange(3.0)
    sums = {"a": mean_share(x, x > 0), "b": max_share(x, x > 0), "c": ess_share(x, x > 0)}
    assert {name: (s.kind, s.values.tolist()) for name, s in on_host(sums).items()} == {
        "a": ("mean", [3.0, 2.0]),
        "b": ("max", [2.0]),
        "c": ("ess", [3.0, 5.0, 2.0]),
    }


def test_a_metric_of_nothing_is_absent():
    nothing = torch.zeros(3, dtype=torch.bool)
    x = torch.ones(3)
    shares = {
        "mean": mean_share(x, nothing),
        "max": max_share(x, nothing),
        "min": min_share(x, nothing),
        "ess": ess_share(x, nothing),
    }
    assert metric_values(shares) == {}


def test_shares_of_different_kinds_do_not_add():
    with pytest.raises(ValueError, match="cannot add a mean and a sum"):
        mean_share(torch.ones(1), torch.ones(1)) + sum_share(torch.ones(1))
