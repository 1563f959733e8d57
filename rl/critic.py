"""The critic's loss; SPO's critic of one number a prompt; controllers of the KL's coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from rl.numerics import MetricSums, Share, mean_share, on_host, power_sums, select, sum_share


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_mask: Tensor,
    *,
    cliprange_value: float | None,
    num_tokens: int,
) -> tuple[Tensor, MetricSums]:
    """½ max((V - R)², (clip(V, V_old ± c) - R)²), summed over sampled tokens, over `num_tokens`.

    The larger of the two, so that clipping never makes the loss smaller (OpenAI's baselines, ppo2). A token
    with an input that is not finite leaves the loss and stays in the denominator.

    Args:
        values, old_values, returns: (B, T); the first with gradient.
        loss_mask: (B, T) bool.
        cliprange_value: c, in units of reward; None does not clip.
        num_tokens: of the whole optimizer step, so that micro-batches add up.

    Returns:
        A scalar, and its shares of the critic/ metrics.
    """
    kept = loss_mask & torch.stack([x.isfinite() for x in (values, old_values, returns)]).all(0)
    value, old, target = (select(kept, x) for x in (values, old_values, returns))
    error = value - target
    squared = error.square()
    clipped = torch.zeros_like(kept)
    if cliprange_value is not None:
        # Not old + clip(V - old): that rounds V inside the band, too, and counts as clipped what is not.
        held = torch.clamp(value, old - cliprange_value, old + cliprange_value)
        clipped = kept & ((held - target).square() > squared)
        squared = torch.maximum(squared, (held - target).square())
    loss = 0.5 * squared.sum() / max(num_tokens, 1)
    return loss, on_host(
        {
            "critic/value_loss": sum_share(loss),
            "critic/value_mean": mean_share(value, kept),
            "critic/clip_frac": mean_share(clipped, kept),
            "critic/explained_variance": explained_variance_share(target, error, kept),
        }
    )


def explained_variance_share(returns: Tensor, errors: Tensor, kept: Tensor) -> Share:
    """1 - var(R - V) / var(R) over the kept tokens: 1 for a perfect critic, 0 for one that knows the mean."""
    return Share("explained", power_sums(kept, returns, errors))


CRITIC_METRICS = {
    "critic/value_loss": "the critic's loss, before vf_coef",
    "critic/value_mean": "mean value of the states before trained tokens",
    "critic/clip_frac": "share of trained tokens whose value loss is the clipped one",
    "critic/explained_variance": "1 - var(return - value) / var(return) over trained tokens; 1 is perfect",
}


@dataclass(frozen=True, slots=True)
class BetaTracker:
    """What is known of a prompt's success rate: Beta(alpha, beta) in pseudo-counts (SPO, arXiv 2509.13232).

    The numbers are those of SPO's recipe for verl: a memory of 8 trajectories where the policy has moved
    much, and of 25 where it has not.
    """

    alpha: float
    beta: float

    D_HALF = 0.06
    RHO_MIN, RHO_MAX = 0.875, 0.96
    PRIOR = 0.5
    EXPLORATION = 0.05

    @classmethod
    def start(cls, rewards: Sequence[float] = ()) -> BetaTracker:
        """From the prompt's rewards so far, none included, as 1 / (1 - ρ_min) = 8 pseudo-counts."""
        count = 1.0 / (1.0 - cls.RHO_MIN)
        value = (sum(rewards) + cls.PRIOR) / (len(rewards) + 2 * cls.PRIOR)
        return cls(count * value, count * (1.0 - value))

    @property
    def value(self) -> float:
        """The expected reward α / (α + β): SPO's baseline."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def sampling_weight(self) -> float:
        """How much the prompt is worth sampling: √(v (1 - v)) + 0.05, not normalized."""
        return (self.value * (1.0 - self.value)) ** 0.5 + self.EXPLORATION

    def update(self, reward: float, divergence: float) -> BetaTracker:
        """After a reward: α ← ρ α + R, β ← ρ β + 1 - R, with ρ = clip(2^(-D / 0.06), 0.875, 0.96).

        Args:
            reward: in [0, 1].
            divergence: D >= 0, nats a token, by which the policy moved since the prompt was last seen.

        Raises:
            ValueError: one of them is outside.
        """
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"reward = {reward}: a BetaTracker counts successes; expected 0 to 1")
        if not divergence >= 0.0:
            raise ValueError(f"divergence = {divergence}: expected at least 0, nats a token")
        rho = min(max(2.0 ** (-divergence / self.D_HALF), self.RHO_MIN), self.RHO_MAX)
        return BetaTracker(rho * self.alpha + reward, rho * self.beta + 1.0 - reward)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedKlController:
    """A coefficient of the KL to the reference that stays what it is."""

    kl_coef: float

    def update(self, kl: float, num_trajectories: int) -> FixedKlController:
        """The same."""
        del kl, num_trajectories
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKlController:
    """A coefficient that follows the KL to the reference, up above its target and down below it.

    β ← β (1 + clip(KL / target_kl - 1, ±0.2) · n / horizon) (arXiv 1909.08593).
    """

    kl_coef: float
    target_kl: float
    """Nats, in the units that `update` is given."""
    horizon: float
    """Trajectories over which β changes by at most a fifth."""

    MAX_ERROR = 0.2

    def __post_init__(self) -> None:
        for name in ("target_kl", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected more than 0")

    def update(self, kl: float, num_trajectories: int) -> AdaptiveKlController:
        """The controller after a step of `num_trajectories` whose measured KL was `kl`, nats.

        Raises:
            ValueError: the KL is not finite; it would be the coefficient for good.
        """
        if not isfinite(kl):
            raise ValueError(f"kl = {kl}: expected a finite number of nats")
        error = min(max(kl / self.target_kl - 1.0, -self.MAX_ERROR), self.MAX_ERROR)
        return replace(self, kl_coef=self.kl_coef * (1.0 + error * num_trajectories / self.horizon))


KlController = FixedKlController | AdaptiveKlController
