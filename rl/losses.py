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
from rl.numerics import LOG_RATIO_NET, bounded_exp, k1, k2, k3, select

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
    learner and engine; there `rollout_logprobs` are the engine's, and `log_weight` the learner's less them.
    `measured`: kept tokens whose entropy is known.
    """

    kept: Tensor
    known: Tensor
    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    entropy: Tensor
    measured: Tensor
    rollout_logprobs: Tensor
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
