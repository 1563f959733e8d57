"""Log-space primitives and the precision policy of everything that becomes a loss or a metric.

Losses are computed in float32 whatever the model's dtype (float64 stays float64), group statistics and metric
sums in float64. Masked values are replaced *before* any exp or log: `NaN * 0` is NaN, and `where` after `exp`
still has the gradient `0 * inf`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import factorial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

LOG_RATIO_NET = 20.0
"""Largest |log-ratio| that is ever exponentiated where a rule has no bound of its own; hits are counted."""

UNIFORM_TOLERANCE = 1e-6
"""Rewards of a group that differ by at most this much, relative to max(1, |mean|), are equal."""

VARIANCE_ROUNDING = 1e-12
"""A variance below this share of the mean square is what rounding leaves of numbers that are all equal."""

K3_SERIES_RADIUS = 0.125
"""Below it expm1(d) - d cancels: 100 % off in float32 for |d| < 3e-4, where healthy log-prob gaps are."""


def loss_dtype(x: Tensor) -> torch.dtype:
    """The dtype that losses of `x` are computed in: float32 or wider."""
    return torch.promote_types(x.dtype, torch.float32)


def select(mask: Tensor, x: Tensor) -> Tensor:
    """`x` in loss precision where `mask` is true; elsewhere 0 in value and gradient, whatever is there."""
    return torch.where(mask, x.to(loss_dtype(x)), 0.0)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp of the log-ratio inside the net: at most e^20, and gradient 0 outside."""
    return log_ratio.clamp(-LOG_RATIO_NET, LOG_RATIO_NET).exp()


def k1(d: Tensor) -> Tensor:
    """KL(p || q) from samples of p with d = log q - log p: unbiased, of either sign (Schulman 2020, k1)."""
    return -d


def k2(d: Tensor) -> Tensor:
    """d² / 2: biased but close, and its gradient is that of the reverse KL (Schulman 2020, k2)."""
    return 0.5 * d * d


def k3(d: Tensor) -> Tensor:
    """exp(d) - 1 - d: unbiased and never negative (Schulman 2020, k3).

    Relative error at most 5e-7 in float32 (a Taylor series near 0); d is clamped to the net.
    """
    d = d.clamp(-LOG_RATIO_NET, LOG_RATIO_NET)
    series = torch.zeros_like(d)
    for n in range(12, 1, -1):  # Horner's rule for Σ dⁿ / n! from n = 2; 12 terms are exact in float64, too
        series = series * d + 1 / factorial(n)
    series = series * d * d
    return torch.where(d.abs() < K3_SERIES_RADIUS, series, torch.expm1(d) - d)


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Of each of N rewards: what its own group looks like. All arrays (N,).

    `std` has divisor n - 1 and is 0 for a group of one; `uniform` marks groups of two or more whose rewards
    are equal within UNIFORM_TOLERANCE.
    """

    mean: np.ndarray
    std: np.ndarray
    size: np.ndarray
    uniform: np.ndarray

    @property
    def informative(self) -> np.ndarray:
        """True where the group has at least two rewards that differ."""
        return (self.size > 1) & ~self.uniform


def group_statistics(rewards: np.ndarray, group_ids: np.ndarray) -> GroupStatistics:
    """Statistics of rewards (N,) by group (N,), in float64 and two passes.

    In float32, seven rewards of 0.1 have a std of 8e-9 and with it an advantage of -0.8, and E[x²] - E[x]²
    gives 1000 ± 0.01 a std of 0. Neither happens here.
    """
    rewards = np.asarray(rewards, np.float64)
    _, group = np.unique(np.asarray(group_ids), return_inverse=True)
    count = np.bincount(group)
    mean = np.bincount(group, rewards) / count
    centered = rewards - mean[group]
    std = np.sqrt(np.bincount(group, centered * centered) / np.maximum(count - 1, 1))
    low, high = np.full(count.shape, np.inf), np.full(count.shape, -np.inf)
    np.minimum.at(low, group, rewards)
    np.maximum.at(high, group, rewards)
    uniform = (count > 1) & (high - low <= UNIFORM_TOLERANCE * np.maximum(1.0, np.abs(mean)))
    return GroupStatistics(mean[group], std[group], count[group], uniform[group])


@dataclass(frozen=True, slots=True)
class Share:
    """What one micro-batch contributes to one metric; shares of any split add up to the same global value.

    `values` (k,) float64 by kind: mean (numerator, denominator), sum (total,), max (value,), min (value,),
    std (n, Σx, Σx²), the population's standard deviation,
    ess (Σu, Σu², n), the effective sample size (Σu)² / (n Σu²) in (0, 1],
    explained (n, Σy, Σy², Σe, Σe²), the explained variance 1 - var(e) / var(y) of y with errors e,
    correlation (n, Σx, Σx², Σy, Σy², Σxy), Pearson's coefficient of x and y.
    """

    kind: Literal["mean", "sum", "max", "min", "std", "ess", "explained", "correlation"]
    values: Tensor

    def __add__(self, other: Share) -> Share:
        if self.kind != other.kind:
            raise ValueError(f"cannot add a {self.kind} and a {other.kind}: shares of two different metrics")
        combine = {"max": torch.maximum, "min": torch.minimum}.get(self.kind, torch.add)
        return Share(self.kind, combine(self.values, other.values))

    def value(self) -> float | None:
        """The metric; None where nothing was counted (0 / 0, or the maximum of nothing)."""
        values = self.values.tolist()
        if self.kind == "mean":
            return values[0] / values[1] if values[1] else None
        if self.kind == "std":
            n, x, xx = values
            return max(xx / n - (x / n) ** 2, 0.0) ** 0.5 if n else None
        if self.kind == "ess":
            return values[0] ** 2 / (values[1] * values[2]) if values[1] else None
        if self.kind == "explained":
            n, y, yy, e, ee = values
            variance = yy * n - y * y
            return 1.0 - (ee * n - e * e) / variance if variance > VARIANCE_ROUNDING * yy * n else None
        if self.kind == "correlation":
            n, x, xx, y, yy, xy = values
            spread_x, spread_y = xx * n - x * x, yy * n - y * y
            varies = spread_x > VARIANCE_ROUNDING * xx * n and spread_y > VARIANCE_ROUNDING * yy * n
            return (xy * n - x * y) / (spread_x * spread_y) ** 0.5 if varies else None
        return values[0] if np.isfinite(values[0]) else None


MetricSums = dict[str, Share]


def mean_share(x: Tensor, weight: Tensor) -> Share:
    """Weighted mean: x (...) with weights, or a mask, of the same shape."""
    return Share("mean", torch.stack([(x.detach().double() * weight).sum(), weight.double().sum()]))


def sum_share(x: Tensor) -> Share:
    """A total, such as a loss whose denominators are global already."""
    return Share("sum", x.detach().double().sum().reshape(1))


def max_share(x: Tensor, mask: Tensor) -> Share:
    """The largest x where mask is true."""
    floor = torch.full((1,), -torch.inf, dtype=torch.float64, device=x.device)
    return Share("max", torch.cat([floor, x.detach().double()[mask]]).max().reshape(1))


def min_share(x: Tensor, mask: Tensor) -> Share:
    """The smallest x where mask is true."""
    return Share("min", -max_share(-x, mask).values)


def power_sums(weight: Tensor, *columns: Tensor) -> Tensor:
    """n, then Σx and Σx² of each column, weighted: float64."""
    w = weight.detach().double()
    powers = (power for x in columns for power in (x.detach().double(), x.detach().double().square()))
    return torch.stack([w.sum(), *((power * w).sum() for power in powers)])


def std_share(x: Tensor, weight: Tensor) -> Share:
    """Weighted population standard deviation: x (...) with weights, or a mask, of the same shape."""
    return Share("std", power_sums(weight, x))


def correlation_share(x: Tensor, y: Tensor, weight: Tensor) -> Share:
    """Pearson's correlation of x and y (...), with weights, or a mask, of the same shape."""
    product = (x.detach().double() * y.detach().double() * weight).sum()
    return Share("correlation", torch.cat([power_sums(weight, x, y), product.reshape(1)]))


def ess_share(u: Tensor, weight: Tensor) -> Share:
    """Effective sample size of importance weights u, as a fraction of the number of samples."""
    u = u.detach().double()
    return Share("ess", torch.stack([(u * weight).sum(), (u * u * weight).sum(), weight.double().sum()]))


def on_host(sums: MetricSums) -> MetricSums:
    """The same shares in main memory, brought there in one transfer instead of one each."""
    if not sums:
        return {}
    parts = torch.cat([share.values for share in sums.values()]).cpu()
    sizes = [len(share.values) for share in sums.values()]
    pairs = zip(sums.items(), parts.split(sizes), strict=True)
    return {name: Share(share.kind, values) for (name, share), values in pairs}


def add_metrics(parts: Iterable[MetricSums]) -> MetricSums:
    """The shares of several micro-batches (or ranks) as one; a metric may be missing from some of them."""
    total: MetricSums = {}
    for part in parts:
        for name, share in part.items():
            total[name] = total[name] + share if name in total else share
    return total


def metric_values(sums: MetricSums) -> dict[str, float]:
    """The metrics that `sums` amount to; one without anything counted is left out."""
    return {name: value for name, share in sums.items() if (value := share.value()) is not None}
