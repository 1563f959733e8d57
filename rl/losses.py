"""The one formulation of all policy losses, in pieces. Every tensor is (B, T) unless it says otherwise.

    L = Σ m (u · surrogate(log r, A) + kl_loss_coef · kl - entropy_coeff · H) · norm

A rule is an interval for the log-ratio by the sign of the advantage, and what happens outside of it. The
interval is applied before exp, so nothing overflows and clip fractions are the same code for every rule. The
pieces expect log-probs that are finite, and 0 wherever a token takes no part (rl/numerics.py, `select`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rl.batch import LossCounts
from rl.numerics import (
    LOG_RATIO_NET,
    MetricSums,
    bounded_exp,
    ess_share,
    k1,
    k2,
    k3,
    max_share,
    mean_share,
    min_share,
    select,
)

PolicyLoss = Literal["reinforce", "importance_sampling", "ppo", "cispo", "jsd"]
RatioLevel = Literal["token", "sequence", "product"]
LossAggMode = Literal[
    "token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]
KlLossType = Literal["k1", "k2", "k3"]
KlGradient = Literal["unbiased", "naive"]
RolloutIs = Literal["none", "token_tis", "token_icepop", "seq_tis", "seq_mis", "geo_tis", "geo_mask_token_is"]
LOSS_AGG_MODES: tuple[LossAggMode, ...] = get_args(LossAggMode)

Side = tuple[float | None, float | None]
KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTokens:
    """The inputs of a loss with everything that takes no part replaced by 0; all (B, T).

    `kept`: trained tokens whose inputs are all finite. `known`: trained tokens with finite log-probs of
    learner and engine; `log_weight` is log π_learner - log π_engine there.
    """

    kept: Tensor
    known: Tensor
    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    entropy: Tensor
    log_weight: Tensor
    ref_logprobs: Tensor | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """(low, high) of the log-ratio where A > 0 and where A < 0; None is an open side, held by the ±20 net.

    `clamp`: outside, the ratio is constant and has no gradient. `stop`: everywhere, the clamped ratio is a
    constant weight on the log-probability.
    """

    positive: Side
    negative: Side
    action: Literal["clamp", "stop"]


class Clipped(NamedTuple):
    """Where a bound was active: below the band; above it with A > 0; above it with A < 0; held by the net."""

    low: Tensor
    high: Tensor
    dual: Tensor
    net: Tensor


def clamp_log_ratio(log_ratio: Tensor, advantages: Tensor, bounds: Bounds) -> tuple[Tensor, Clipped]:
    """The log-ratio inside its interval, and where it was held there. Nothing is clipped where A = 0."""
    negative = advantages < 0

    def edge(side: int, net: float) -> Tensor:
        values = (
            net if limits[side] is None else limits[side] for limits in (bounds.negative, bounds.positive)
        )
        return torch.where(negative, *(log_ratio.new_tensor(value) for value in values))

    low, high = edge(0, -LOG_RATIO_NET), edge(1, LOG_RATIO_NET)
    # An interval of one point is a constant ratio (REINFORCE), not a clip.
    live = (advantages != 0) & (low < high)
    below, above = live & (log_ratio < low), live & (log_ratio > high)
    net = (below & (low == -LOG_RATIO_NET)) | (above & (high == LOG_RATIO_NET))
    clipped = Clipped(below & ~net, above & ~negative & ~net, above & negative & ~net, net)
    return torch.clamp(log_ratio, low, high), clipped


def surrogate(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, bounds: Bounds
) -> tuple[Tensor, Clipped]:
    """The per-token policy loss: -A r for `clamp`, -A sg(r) log π for `stop`, with r inside its interval.

    With PPO's bounds this is max(-A r, -A clip(r, 1 - ε_low, 1 + ε_high)) (arXiv 1707.06347, eq. 7).
    """
    clamped, clipped = clamp_log_ratio(log_ratio, advantages, bounds)
    ratio = clamped.exp()
    per_token = ratio.detach() * logprobs if bounds.action == "stop" else ratio
    return -advantages * per_token, clipped


def at_level(log_ratio: Tensor, kept: Tensor, level: RatioLevel) -> Tensor:
    """The log of each token's ratio: its own, its row's geometric mean (sequence), or its row's product.

    The row's value carries the token's own gradient, sg(row) + x_t - sg(x_t) (GSPO-token, arXiv 2507.18071,
    eq. 13-14), which is right for advantages that vary within a row, too.
    """
    if level == "token":
        return log_ratio
    row = log_ratio.detach().double().sum(1, keepdim=True)  # float32 loses digits over long rows
    if level == "sequence":
        row = row / kept.sum(1, keepdim=True).clamp(min=1)
    return select(kept, row.to(log_ratio.dtype) + log_ratio - log_ratio.detach())


class RolloutCorrection(NamedTuple):
    """What is compared with the bounds, what becomes the weight, and what happens outside the bounds."""

    gate: RatioLevel
    weight: RatioLevel
    action: Literal["truncate", "mask"]


ROLLOUT_IS: dict[RolloutIs, RolloutCorrection] = {
    "token_tis": RolloutCorrection("token", "token", "truncate"),
    "token_icepop": RolloutCorrection("token", "token", "mask"),
    "seq_tis": RolloutCorrection("product", "product", "truncate"),
    "seq_mis": RolloutCorrection("product", "product", "mask"),
    "geo_tis": RolloutCorrection("sequence", "sequence", "truncate"),
    "geo_mask_token_is": RolloutCorrection("sequence", "token", "mask"),
}


class RolloutWeights(NamedTuple):
    """Constant weights u, and where they were cut to the threshold or set to 0."""

    weight: Tensor
    capped: Tensor
    masked: Tensor


def rollout_weights(
    log_weight: Tensor, kept: Tensor, correction: RolloutCorrection, *, low: float, high: float
) -> RolloutWeights:
    """u from w = exp(old - rollout): min(w, high), or w inside [low, high] and 0 outside; 0 where not kept.

    Denominators of the loss do not shrink with what is masked: that would raise the step size of the rest.
    """
    log_weight = log_weight.detach()
    gate = at_level(log_weight, kept, correction.gate)
    log_low, log_high = (gate.new_tensor(bound).log() for bound in (low, high))
    weight = at_level(log_weight, kept, correction.weight)
    if correction.action == "truncate":
        capped = kept & (gate > log_high)
        return RolloutWeights(
            select(kept, bounded_exp(torch.minimum(weight, log_high))), capped, torch.zeros_like(kept)
        )
    inside = kept & (gate >= log_low) & (gate <= log_high)
    return RolloutWeights(select(inside, bounded_exp(weight)), torch.zeros_like(kept), kept & ~inside)


def kl_penalty(
    logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor, *, kl_loss_type: str, kl_gradient: str
) -> Tensor:
    """The per-token KL to the reference.

    naive: the estimator as it is; in expectation its gradient is 0 for k1, and the *forward* KL's for k3.
    unbiased: value r · k, gradient r (log π - log π_ref), the reverse KL's for samples of the anchor
    (DeepSeek-V3.2, arXiv 2512.02556); linear, so it still pulls where the estimator's value is clamped.
    """
    delta = ref_logprobs - logprobs
    estimate = KL_ESTIMATORS[kl_loss_type](delta)
    if kl_gradient == "naive":
        return estimate
    ratio = bounded_exp(log_ratio.detach())
    return ratio * (estimate.detach() - delta.detach() * (logprobs - logprobs.detach()))


def token_norm(
    loss_mask: Tensor,
    weight: Tensor,
    counts: LossCounts,
    *,
    loss_agg_mode: str,
    scale: float | None,
) -> Tensor:
    """The constant that each token's loss is multiplied with, float64; 0 where the mask is 0.

    A pure function of the original mask and of global counts: splitting a batch changes nothing. weight (B,)
    is each row's part of its trajectory, which so counts once in `seq-mean-token-mean` however many rows it
    became. No token at all: 0.
    """
    num_tokens, num_sequences = max(counts.num_tokens, 1), max(counts.num_sequences, 1)
    row_tokens = loss_mask.sum(1, keepdim=True).clamp(min=1)
    per_token = {
        "token-sum": lambda: 1.0,
        "token-mean": lambda: 1.0 / num_tokens,
        "seq-mean-token-sum": lambda: 1.0 / num_sequences,
        "seq-mean-token-sum-norm": lambda: 1.0 / (num_sequences * (scale or 1.0)),
        "seq-mean-token-mean": lambda: weight[:, None].double() / row_tokens / num_sequences,
    }[loss_agg_mode]()
    return loss_mask.double() * per_token


def ratio_metrics(log_ratio: Tensor, clipped: Clipped, kept: Tensor, level: RatioLevel) -> MetricSums:
    """How far the policy has moved from the anchor: per token, or per row where the ratio is the row's."""
    unit = kept.double() if level == "token" else kept.double() / kept.sum(1, keepdim=True).clamp(min=1)
    ratio = bounded_exp(log_ratio)
    return {
        "policy/ratio_mean": mean_share(ratio, unit),
        "policy/ratio_min": min_share(ratio, kept),
        "policy/ratio_max": max_share(ratio, kept),
        "policy/ess": ess_share(ratio, unit),
        "policy/clip_frac_low": mean_share(clipped.low, unit),
        "policy/clip_frac_high": mean_share(clipped.high, unit),
        "policy/clip_frac_dual": mean_share(clipped.dual, unit),
        "policy/log_ratio_clamp_frac": mean_share(clipped.net, unit),
    }


def gap_metrics(log_weight: Tensor, known: Tensor, loss_mask: Tensor) -> MetricSums:
    """How far the learner is from the sampler on the tokens where both log-probs are `known`."""
    ratio = bounded_exp(log_weight)
    return {
        "gap/mean": mean_share(log_weight, known),
        "gap/abs_mean": mean_share(log_weight.abs(), known),
        "gap/abs_max": max_share(log_weight.abs(), known),
        "gap/k1": mean_share(k1(log_weight), known),
        "gap/k3": mean_share(k3(log_weight), known),
        "gap/ratio_mean": mean_share(ratio, known),
        "gap/ratio_min": min_share(ratio, known),
        "gap/ratio_max": max_share(ratio, known),
        "gap/ess": ess_share(ratio, known),
        "gap/chi2": mean_share(ratio.double().square() - 1.0, known),
        "gap/missing_logprob_frac": mean_share(loss_mask & ~known, loss_mask),
    }


LOSS_METRICS = {
    "policy/loss": "the loss that was minimised",
    "policy/pg_loss": "its policy-gradient term",
    "policy/kl_loss": "its KL term before kl_loss_coef; only where the row has one",
    "policy/entropy": "mean entropy of the policy over trained tokens, nats",
    "policy/advantage_mean": "mean advantage over trained tokens",
    "policy/advantage_abs_max": "largest |advantage| of a trained token",
    "policy/ratio_mean": "mean probability ratio to the policy before the update; of rows at sequence level",
    "policy/ratio_min": "smallest such ratio",
    "policy/ratio_max": "largest such ratio",
    "policy/ess": "effective sample size (Σr)² / (n Σr²) of those ratios; 1 on policy",
    "policy/clip_frac_low": "share of ratios held at the band's lower end (A < 0)",
    "policy/clip_frac_high": "share of ratios held at the band's upper end with A > 0",
    "policy/clip_frac_dual": "share of ratios held at an upper end with A < 0 (dual clip, CISPO)",
    "policy/log_ratio_clamp_frac": "share of ratios held by the e^±20 net, where the rule has no bound",
    "policy/approx_kl_k1": "mean of log π_old - log π over trained tokens, nats",
    "policy/approx_kl_k3": "mean of r - 1 - log r over trained tokens, never negative, nats",
    "policy/nonfinite_token_frac": "share of trained tokens left out because an input was NaN or infinite",
    "policy/kl_ref_k1": "mean of log π - log π_ref over trained tokens, nats",
    "policy/kl_ref_k3": "k3 estimate of the KL from the policy to the reference, nats",
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
    "gap/missing_logprob_frac": "share of trained tokens without a finite log-prob of the engine",
    "gap/is_weight_mean": "mean importance weight that the loss used, after truncation or masking",
    "gap/is_weight_max": "largest such weight",
    "gap/is_weight_capped_frac": "share of trained tokens whose weight was cut to rollout_is_threshold",
    "gap/is_weight_masked_frac": "share of trained tokens whose weight was set to 0",
}
"""Every metric that a policy loss emits. Means are over the whole update, whatever its micro-batches."""
