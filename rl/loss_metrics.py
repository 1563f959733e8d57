"""What a policy loss says of itself: one piece of code for every rule, pooled over micro-batches and updates.

Each function returns shares (rl/numerics.py): global sums over global counts, never a mean of means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl.losses import Clipped, LossTokens, RatioLevel, RolloutWeights
from rl.numerics import (
    MetricSums,
    Share,
    bounded_exp,
    correlation_share,
    ess_share,
    k1,
    k3,
    max_share,
    mean_share,
    min_share,
    select,
    std_share,
)

if TYPE_CHECKING:
    from rl.policy_gradient import PolicyGradient

LARGE_ADVANTAGE = 5.0
"""Nats by which a teacher must differ from the policy on a token to be counted."""


def token_metrics(x: LossTokens, loss_mask: Tensor) -> MetricSums:
    """What the trained tokens are like, and how far the policy is from the anchor on them."""
    return {
        "policy/entropy": mean_share(x.entropy, x.measured),
        "policy/advantage_mean": mean_share(x.advantages, x.kept),
        "policy/advantage_std": std_share(x.advantages, x.kept),
        "policy/advantage_abs_max": max_share(x.advantages.abs(), x.kept),
        "policy/advantage_positive_frac": mean_share(x.advantages > 0, x.kept),
        "policy/approx_kl_k1": mean_share(-x.log_ratio, x.kept),
        "policy/approx_kl_k3": mean_share(k3(x.log_ratio), x.kept),
        "policy/nonfinite_token_frac": mean_share(loss_mask & ~x.kept, loss_mask),
    }


def ratio_metrics(log_ratio: Tensor, clipped: Clipped, kept: Tensor, level: RatioLevel) -> MetricSums:
    """The ratio and where it was held: per token, or per row where the ratio is the row's (GSPO)."""
    unit = kept.double() if level == "token" else _per_row(kept)
    ratio = bounded_exp(log_ratio)
    return {
        "policy/log_ratio_mean": mean_share(log_ratio, unit),
        "policy/log_ratio_std": std_share(log_ratio, unit),
        "policy/ratio_mean": mean_share(ratio, unit),
        "policy/ratio_min": min_share(ratio, kept),
        "policy/ratio_max": max_share(ratio, kept),
        "policy/ess": ess_share(ratio, unit),
        "policy/clip_frac_low": mean_share(clipped.low, unit),
        "policy/clip_frac_high": mean_share(clipped.high, unit),
        "policy/clip_frac_dual": mean_share(clipped.dual, unit),
        "policy/log_ratio_clamp_frac": mean_share(clipped.net, unit),
    }


def gap_metrics(x: LossTokens) -> MetricSums:
    """How far the learner is from the sampler on the tokens where both log-probs are known."""
    difference, known = x.log_weight, x.known
    ratio = bounded_exp(difference)
    of_row = _per_row(known)
    # A row's perplexity is exp of its mean of -log π: the ratio of two is exp of their mean difference.
    ppl_ratio = bounded_exp(-(difference.detach().double() * of_row).sum(1))
    learner, engine = (y.clamp(max=0.0).exp() for y in (x.rollout_logprobs + difference, x.rollout_logprobs))
    return {
        "gap/mean": mean_share(difference, known),
        "gap/abs_mean": mean_share(difference.abs(), known),
        "gap/abs_max": max_share(difference.abs(), known),
        "gap/k1": mean_share(k1(difference), known),
        "gap/k3": mean_share(k3(difference), known),
        "gap/ratio_mean": mean_share(ratio, known),
        "gap/ratio_min": min_share(ratio, known),
        "gap/ratio_max": max_share(ratio, known),
        "gap/ess": ess_share(ratio, known),
        "gap/chi2": mean_share(ratio.double().square() - 1.0, known),
        "gap/ppl_ratio": mean_share(ppl_ratio, known.any(1)),
        "gap/correlation": correlation_share(learner, engine, known),
    }


def weight_metrics(weights: RolloutWeights, kept: Tensor) -> MetricSums:
    """The importance weights that the loss used, and what they cut off, by token and by row."""
    rows = kept.any(1)
    return {
        "gap/is_weight_mean": mean_share(weights.weight, kept),
        "gap/is_weight_max": max_share(weights.weight, kept),
        "gap/is_weight_ess": ess_share(weights.weight, kept),
        "gap/is_weight_capped_frac": mean_share(weights.capped, kept),
        "gap/is_weight_masked_frac": mean_share(weights.masked, kept),
        "gap/is_weight_capped_row_frac": mean_share(weights.capped.any(1), rows),
        "gap/is_weight_masked_row_frac": mean_share(weights.masked.any(1), rows),
    }


def reference_metrics(row: PolicyGradient, x: LossTokens, ref_logprobs: Tensor | None) -> MetricSums:
    """The KL to the reference, wherever it enters, and how much it weighs there; nothing without one."""
    if ref_logprobs is None:
        return {}
    known = x.kept & ref_logprobs.isfinite()
    delta = select(known, ref_logprobs) - select(known, x.logprobs)
    return {
        "policy/kl_ref_k1": mean_share(k1(delta), known),
        "policy/kl_ref_k3": mean_share(k3(delta), known),
        **({"policy/kl_loss_coef": _setting(row.kl_loss_coef, like=delta)} if row.kl_loss_coef else {}),
    }


def teacher_metrics(x: LossTokens, teacher_logprobs: Tensor | None) -> MetricSums:
    """How far the policy is from its teacher, where it has one."""
    if teacher_logprobs is None:
        return {}
    known = x.kept & teacher_logprobs.isfinite()
    return {
        "distill/teacher_kl_k1": mean_share(x.logprobs.detach() - select(known, teacher_logprobs), known),
        "distill/large_advantage_frac": mean_share(x.advantages.abs() > LARGE_ADVANTAGE, x.kept),
    }


def _per_row(mask: Tensor) -> Tensor:
    """Weights (B, T), float64, that add up to 1 over a row's tokens, 0 for a row without one."""
    return mask.double() / mask.sum(1, keepdim=True).clamp(min=1)


def _setting(value: float, *, like: Tensor) -> Share:
    """A number that is the same in every micro-batch."""
    return Share("mean", torch.tensor([value, 1.0], dtype=torch.float64, device=like.device))


LOSS_METRICS = {
    "policy/loss": "the loss that was minimised",
    "policy/pg_loss": "its policy-gradient term",
    "policy/kl_loss": "its KL term before kl_loss_coef; only where the row has one",
    "policy/entropy": "mean entropy of the policy over trained tokens (of 512 a micro-batch "
    "where the loss has no part of it), nats; with replay_sampling_mask, of the distribution over what could "
    "be drawn",
    "policy/advantage_mean": "mean advantage over trained tokens",
    "policy/advantage_std": "population standard deviation of the advantage over trained tokens",
    "policy/advantage_abs_max": "largest |advantage| of a trained token",
    "policy/advantage_positive_frac": "share of trained tokens with an advantage above 0",
    "policy/log_ratio_mean": "mean log of the ratio to the policy before the update, of tokens or rows",
    "policy/log_ratio_std": "population standard deviation of those logs, nats",
    "policy/ratio_mean": "mean probability ratio to the policy before the update; of rows at sequence level",
    "policy/ratio_min": "smallest such ratio",
    "policy/ratio_max": "largest such ratio",
    "policy/ess": "effective sample size (Σr)² / (n Σr²) of those ratios; 1 on policy",
    "policy/clip_frac_low": "share of ratios held at the band's lower end (A < 0)",
    "policy/clip_frac_high": "share of ratios held at the band's upper end, or at CISPO's cap, with A > 0",
    "policy/clip_frac_dual": "share of ratios held at an upper end with A < 0: dual clip, CISPO's cap",
    "policy/log_ratio_clamp_frac": "share of ratios held by the e^±20 net, where the rule has no bound",
    "policy/off_policy_masked_frac": "share of trained tokens left out by off_policy_mask_threshold",
    "policy/approx_kl_k1": "mean of log π_old - log π over trained tokens, nats",
    "policy/approx_kl_k3": "mean of r - 1 - log r over trained tokens, never negative, nats",
    "policy/nonfinite_token_frac": "share of trained tokens left out because an input was NaN or infinite",
    "policy/kl_ref_k1": "mean of log π - log π_ref over trained tokens, nats",
    "policy/kl_ref_k3": "k3 estimate of the KL from the policy to the reference, nats",
    "policy/kl_loss_coef": "weight of the KL to the reference in the loss; only where it is above 0",
    "gap/mean": "mean of the learner's log-prob less the engine's over trained tokens, nats",
    "gap/abs_mean": "mean |log-prob of the learner - log-prob of the engine| over trained tokens, nats",
    "gap/abs_max": "largest such difference, nats",
    "gap/k1": "mean of log-prob of the engine less that of the learner: an estimate of their KL, nats",
    "gap/k3": "the same KL by an estimate that is never negative, nats",
    "gap/ratio_mean": "mean of w = probability under the learner / under the engine",
    "gap/ratio_min": "smallest w",
    "gap/ratio_max": "largest w",
    "gap/ess": "effective sample size (Σw)² / (n Σw²); 1 where engine and learner agree",
    "gap/chi2": "mean of w² - 1",
    "gap/ppl_ratio": "perplexity of a row under the learner / under the engine, mean over rows",
    "gap/correlation": "Pearson's correlation of a trained token's probabilities under learner and engine",
    "gap/missing_logprob_frac": "share of trained tokens without a finite log-prob of the engine",
    "gap/is_weight_mean": "mean importance weight that the loss used, after truncation or masking",
    "gap/is_weight_max": "largest such weight",
    "gap/is_weight_ess": "effective sample size (Σu)² / (n Σu²) of those weights",
    "gap/is_weight_capped_frac": "share of trained tokens whose weight was cut to rollout_is_threshold",
    "gap/is_weight_masked_frac": "share of trained tokens whose weight was set to 0",
    "gap/is_weight_capped_row_frac": "share of rows with a token whose weight was cut",
    "gap/is_weight_masked_row_frac": "share of rows with a token whose weight was set to 0",
}
"""Every metric that a policy loss emits. Means are over the whole update, whatever its micro-batches."""
