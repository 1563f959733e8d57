"""Policy losses that are more than an interval of the ratio: functions from tokens to token losses.

    per_token, clipped = apply_rule("sapo", RuleTokens.of(loss_tokens), {"tau_neg": 1.1})

A rule never sees aggregation: its result is weighted with rl.losses.token_norm afterwards. At log_ratio 0 its
gradient is that of REINFORCE, -A, unless its docstring says otherwise. Intervals (PPO, CISPO) are in
rl/losses.py, and so is TRL's two-sided `delta` (INTELLECT-2, arXiv 2505.07291): it is PPO's dual clip with
clip_ratio_c = delta, for every delta above 1 + clip_ratio_high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, log1p
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from envs.names import unknown_name
from rl.losses import Bounds, Clipped, LossTokens, PolicyLoss, at_level, clamp_log_ratio, surrogate
from rl.numerics import LOG_RATIO_NET, bounded_exp, loss_dtype, select

MIN_PROBABILITY = 1e-8
"""Smallest 1 - p of DPPO's binary KL: in float32 a likely token's p rounds to 1, where the KL is infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTokens:
    """What a rule sees: all (B, T), float32 or wider, finite, and 0 where `kept` (bool) is false.

    `log_ratio` is each token's logprobs - anchor, with gradient; the anchor is the policy before the update
    or, in bypass mode, the engine.
    """

    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    kept: Tensor

    @classmethod
    def of(cls, x: LossTokens) -> RuleTokens:
        """The part of a loss's inputs that a rule sees."""
        return cls(logprobs=x.logprobs, log_ratio=x.log_ratio, advantages=x.advantages, kept=x.kept)

    @property
    def anchor_logprobs(self) -> Tensor:
        """Log-probs of the policy that the ratio is to; no gradient."""
        return (self.logprobs - self.log_ratio).detach()


class RuleLoss(NamedTuple):
    """The loss of each token, and where a bound was active (rl.losses.Clipped); all (B, T).

    A token that a rule leaves out counts as `high` where A > 0 and as `low` where A < 0.
    """

    per_token: Tensor
    clipped: Clipped


Knobs = Mapping[str, float]
Rule = Callable[[RuleTokens, Knobs], RuleLoss]


def sapo(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A (4 / τ) σ(τ (r - 1)) with τ by the sign of A: a soft gate for a clip (SAPO, arXiv 2511.20347)."""
    tau = by_sign(x.advantages, knobs["tau_pos"], knobs["tau_neg"])
    gate = torch.sigmoid(tau * (bounded_exp(x.log_ratio) - 1.0)) * 4.0 / tau
    return RuleLoss(-x.advantages * gate, counted(x, net=beyond_net(x, x.log_ratio)))


def gmpo(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A exp(mean over the row of clipped log-ratios) (GMPO, arXiv 2507.20673); verl calls it geo_mean.

    clip_ratio_low and clip_ratio_high bound the *log*-ratio of a token: above where A > 0, below where A < 0.
    The row's value stands at each of its tokens: seq-mean-token-mean makes it the paper's mean over rows, of
    which it counts those with a trained token; verl's divides by the others, too.
    """
    bounds = Bounds((None, knobs["clip_ratio_high"]), (-knobs["clip_ratio_low"], None), "clamp")
    clamped, clipped = clamp_log_ratio(x.log_ratio, x.advantages, bounds)
    return RuleLoss(-x.advantages * at_level(clamped, x.kept, "sequence").exp(), clipped)


def luspo(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """GSPO's loss times the row's number of kept tokens (LUSPO, arXiv 2602.05261).

    Meant for seq-mean-token-mean, where it is GSPO with seq-mean-token-sum. On policy the gradient is -A
    times that number.
    """
    row_ratio = at_level(x.log_ratio, x.kept, "sequence")
    per_token, clipped = surrogate(x.logprobs, row_ratio, x.advantages, ppo_bounds(knobs))
    return RuleLoss(x.kept.sum(1, keepdim=True) * per_token, clipped)


def clip_cov(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """PPO without the tokens whose log-prob and advantage covary most (Clip-Cov, arXiv 2505.22617).

    Left out is the share clip_cov_ratio of the kept tokens, one at least, of those that PPO did not clip and
    whose covariance is between clip_cov_lb and clip_cov_ub: the largest first, ties by index (verl draws them
    at random). They have no gradient on policy either. Means and share are those of the micro-batch given:
    splitting a batch changes the result.
    """
    per_token, clipped = surrogate(x.logprobs, x.log_ratio, x.advantages, ppo_bounds(knobs))
    covariance = token_covariance(x)
    inside = (covariance > knobs["clip_cov_lb"]) & (covariance < knobs["clip_cov_ub"])
    candidates = x.kept & inside & ~torch.stack(clipped).any(0)
    dropped = largest(covariance, candidates, x.kept, knobs["clip_cov_ratio"])
    low, high = clipped.low | (dropped & (x.advantages < 0)), clipped.high | (dropped & (x.advantages > 0))
    return RuleLoss(select(~dropped, per_token), clipped._replace(low=low, high=high))


def kl_cov(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A r, plus ppo_kl_coef |log r| at the tokens that covary most (KL-Cov, arXiv 2505.22617).

    These are the share kl_cov_ratio of the kept tokens, one at least, with the largest covariance, ties by
    index. Means and share are those of the micro-batch given: splitting a batch changes the result.
    """
    chosen = largest(token_covariance(x), x.kept, x.kept, knobs["kl_cov_ratio"])
    per_token = -x.advantages * bounded_exp(x.log_ratio)
    penalty = knobs["ppo_kl_coef"] * select(chosen, x.log_ratio.abs())
    return RuleLoss(per_token + penalty, counted(x, net=beyond_net(x, x.log_ratio)))


def dppo_tv(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A r where the token's probability p is near its old one, q, or returns to it (arXiv 2602.04879).

    Left out are tokens with A > 0 and p - q > clip_ratio_high, or A < 0 and p - q < -clip_ratio_low.
    """
    p, q = (y.clamp(max=0.0).exp() for y in (x.logprobs, x.anchor_logprobs))
    return _within(x, p - q, knobs)


def dppo_kl(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """dppo_tv with KL(q || p) of the token against all others, q ln(q/p) + (1-q) ln((1-q)/(1-p)), nats."""
    log_p, log_q = (y.clamp(max=0.0) for y in (x.logprobs, x.anchor_logprobs))
    others_p, others_q = ((-torch.expm1(y)).clamp(min=MIN_PROBABILITY) for y in (log_p, log_q))
    divergence = log_q.exp() * (log_q - log_p) + others_q * (others_q / others_p).log()
    return _within(x, divergence * (log_p - log_q).sign(), knobs)


def _within(x: RuleTokens, divergence: Tensor, knobs: Knobs) -> RuleLoss:
    """-A r where the divergence, with the sign of p - q, is within the bound on the side that A pushes to."""
    high = (x.advantages > 0) & (divergence > knobs["clip_ratio_high"])
    low = (x.advantages < 0) & (divergence < -knobs["clip_ratio_low"])
    within = ~(low | high)
    net = within & beyond_net(x, x.log_ratio)
    per_token = select(within, -x.advantages * bounded_exp(x.log_ratio))
    return RuleLoss(per_token, counted(x, low=low, high=high, net=net))


def kimi(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A log π + (τ / 2) (log r)² by token (Kimi k1.5, arXiv 2501.12599); verl calls it dro."""
    penalty = 0.5 * knobs["tau"] * x.log_ratio.square()
    return RuleLoss(-x.advantages * x.logprobs + penalty, counted(x))


def topr(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A w log π: constant w, 1 where A > 0, else the row's product ratio, at most 1 (arXiv 2503.14286)."""
    del knobs
    log_weight = at_level(x.log_ratio.detach(), x.kept, "product")
    negative = x.advantages < 0
    weight = torch.where(negative, log_weight.clamp(max=0.0).exp(), 1.0)
    return RuleLoss(-x.advantages * weight * x.logprobs, counted(x, dual=negative & (log_weight > 0)))


def opmd(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A log π / (1 + τ), which is also its gradient on policy (Trinity-RFT's OPMD, arXiv 2505.17826)."""
    return RuleLoss(-x.advantages * x.logprobs / (1.0 + knobs["tau"]), counted(x))


def vespo(x: RuleTokens, knobs: Knobs) -> RuleLoss:
    """-A φ(w) log π: constant φ(w) = w^k e^(λ (1 - w)) of the row's product ratio w (arXiv 2602.10693)."""
    log_weight = at_level(x.log_ratio.detach(), x.kept, "product")
    k = by_sign(x.advantages, knobs["k_pos"], knobs["k_neg"])
    rate = by_sign(x.advantages, knobs["lambda_pos"], knobs["lambda_neg"])
    bounded = log_weight.clamp(-LOG_RATIO_NET, LOG_RATIO_NET)
    phi = (k * bounded + rate * (1.0 - bounded.exp())).exp()
    return RuleLoss(-x.advantages * phi * x.logprobs, counted(x, net=beyond_net(x, log_weight)))


def off_policy_sequence_mask(log_ratio: Tensor, advantages: Tensor, kept: Tensor, delta: float) -> Tensor:
    """False where A < 0 in a row whose mean of old - log π exceeds `delta` nats (arXiv 2512.02556).

    All (B, T); the mean is over kept tokens. It multiplies token losses; denominators stay the original ones.
    """
    drift = -at_level(log_ratio.detach(), kept, "sequence")
    return kept & ~((advantages < 0) & (drift > delta))


def by_sign(advantages: Tensor, positive: float, negative: float) -> Tensor:
    """`positive` where A > 0 and `negative` elsewhere, in the precision of the advantages."""
    return torch.where(advantages > 0, *(advantages.new_tensor(value) for value in (positive, negative)))


def ppo_bounds(knobs: Knobs) -> Bounds:
    """PPO's interval of the log-ratio for clip_ratio_low and clip_ratio_high."""
    low = log1p(-knobs["clip_ratio_low"]) if knobs["clip_ratio_low"] < 1 else None
    return Bounds((None, log1p(knobs["clip_ratio_high"])), (low, None), "clamp")


def counted(x: RuleTokens, **where: Tensor) -> Clipped:
    """Clip counters by name; those that are not given are false everywhere."""
    return Clipped(**({side: torch.zeros_like(x.kept) for side in Clipped._fields} | where))


def beyond_net(x: RuleTokens, log_ratio: Tensor) -> Tensor:
    """Where a log-ratio without a bound of its own is held by the ±20 net, and it matters."""
    return (x.advantages != 0) & (log_ratio.abs() > LOG_RATIO_NET)


def token_covariance(x: RuleTokens) -> Tensor:
    """(A - mean A) (log π - mean log π), float64 without gradient; means over the kept tokens given."""
    num_kept = x.kept.sum().clamp(min=1)
    advantages, logprobs = (y.detach().double() for y in (x.advantages, x.logprobs))
    return (advantages - advantages.sum() / num_kept) * (logprobs - logprobs.sum() / num_kept)


def largest(score: Tensor, among: Tensor, kept: Tensor, share: float) -> Tensor:
    """True at the `share` of the kept tokens, at least one, with the largest score `among` candidates."""
    count = max(int(share * int(kept.sum())), 1)
    order = torch.where(among, score, -torch.inf).flatten().argsort(descending=True, stable=True)
    return torch.zeros_like(among).flatten().index_fill(0, order[:count], True).view_as(among) & among


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (sapo, gmpo, luspo, clip_cov, kl_cov, dppo_tv, dppo_kl, kimi, topr, opmd, vespo)
}
PPO_CLIP: Knobs = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}  # PPO, arXiv 1707.06347
RULE_KNOBS: dict[str, Knobs] = {
    "sapo": {"tau_pos": 1.0, "tau_neg": 1.05},  # TRL, verl
    "gmpo": {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4},  # arXiv 2507.20673
    "luspo": {"clip_ratio_low": 2e-3, "clip_ratio_high": 2.5e-3},  # arXiv 2602.05261
    "clip_cov": {**PPO_CLIP, "clip_cov_ratio": 0.0002, "clip_cov_lb": 1.0, "clip_cov_ub": 5.0},  # verl
    "kl_cov": {"kl_cov_ratio": 0.0002, "ppo_kl_coef": 0.1},  # verl's yaml; its code falls back to 1.0
    "dppo_tv": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},  # prime-rl, SkyRL
    "dppo_kl": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},  # verl, its general clip_ratio
    "kimi": {"tau": 0.1},  # ROLL, kimi15_tau
    "topr": {},
    "opmd": {"tau": 1.0},  # Trinity-RFT
    "vespo": {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0},  # TRL
}
"""The knobs of each rule and their defaults."""
RULE_ALIASES = {"geo_mean": "gmpo", "dro": "kimi", "kimi15": "kimi"}
"""Other libraries' names of rules."""


def register_rule(name: str, function: Rule, **knobs: float) -> None:
    """Offer `function` as the rule `name`, with its knobs and their defaults. ValueError for a taken name."""
    if name in {*RULES, *RULE_ALIASES, *get_args(PolicyLoss)}:
        raise ValueError(f"rule {name!r} exists already: give yours another name")
    RULES[name], RULE_KNOBS[name] = function, knobs


def rule_knobs(name: str, overrides: Knobs) -> Knobs:
    """All knobs of a rule. ValueError for an unknown rule, an unknown knob or a value that is not finite."""
    name = RULE_ALIASES.get(name, name)
    if name not in RULES:
        raise ValueError(unknown_name("rule", name, [*RULES, *RULE_ALIASES]))
    for knob, value in overrides.items():
        if knob not in RULE_KNOBS[name]:
            raise ValueError(unknown_name(f"knob of rule {name!r}", knob, RULE_KNOBS[name]))
        if not isfinite(value):
            raise ValueError(f"{knob} = {value} of rule {name!r}: expected a finite number")
    return {**RULE_KNOBS[name], **overrides}


def apply_rule(name: str, x: RuleTokens, overrides: Knobs) -> RuleLoss:
    """The loss by the rule of this name, 0 where a token is not kept.

    ValueError, with what was returned and what is expected, when the function breaks the contract of a rule:
    a finite loss for each kept token, (B, T), float32 or wider, with a gradient.
    """
    knobs = rule_knobs(name, overrides)
    loss = RULES[RULE_ALIASES.get(name, name)](x, knobs)
    if wrong := "; ".join(_violations(loss, x)):
        raise ValueError(f"rule {name!r} {wrong}")
    return loss._replace(per_token=select(x.kept, loss.per_token))


def _violations(loss: object, x: RuleTokens) -> Iterator[str]:
    """What a rule's result lacks, in words."""
    if not (isinstance(loss, RuleLoss) and isinstance(loss.clipped, Clipped)):
        yield f"returned {loss!r:.80}, expected RuleLoss(per_token, Clipped(low, high, dual, net))"
        return
    shape, y = tuple(x.kept.shape), loss.per_token
    for name, side in loss.clipped._asdict().items():
        if side.dtype != torch.bool or tuple(side.shape) != shape:
            yield f"returned clipped.{name} {tuple(side.shape)} {side.dtype}, expected {shape} torch.bool"
    if tuple(y.shape) != shape or y.dtype != loss_dtype(y):
        yield f"returned per_token {tuple(y.shape)} {y.dtype}, expected {shape} torch.float32 or wider"
    elif num_wrong := int((x.kept & ~y.isfinite()).sum()):
        yield f"is not finite at {num_wrong} of {int(x.kept.sum())} kept tokens: bound what goes into exp"
    if x.logprobs.requires_grad and not y.requires_grad:
        yield "returned per_token without a gradient, expected one to logprobs: was it detached?"
