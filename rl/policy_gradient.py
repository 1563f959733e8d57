"""One policy-gradient algorithm: which rewards become advantages, and which loss is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log, log1p
from typing import Literal

import torch
from torch import Tensor

from rl.batch import LossCounts, TrainBatch
from rl.credit import assign_advantages, required
from rl.critic import value_loss
from rl.knobs import problems
from rl.layout import PaddedLayout
from rl.losses import (
    ROLLOUT_IS,
    Bounds,
    Clipped,
    KlGradient,
    KlLossType,
    LossAggMode,
    LossTokens,
    RolloutIs,
    RolloutWeights,
    at_level,
    gap_metrics,
    kl_penalty,
    ratio_metrics,
    rollout_weights,
    surrogate,
    token_norm,
)
from rl.numerics import (
    MetricSums,
    k1,
    k3,
    max_share,
    mean_share,
    on_host,
    select,
    sum_share,
)
from rl.rules import RULE_KNOBS, RuleTokens, apply_rule, off_policy_sequence_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient:
    """One algorithm. Knobs carry verl's names; see rl/advantages.py and rl/losses.py for what they select.

    Advantages
        adv_estimator: a key of CREDITS (rl/credit.py).
        gamma, lam: discount a sampled token, and GAE's λ; estimators with one value a token use them.
        kl_coef: weight of the KL to the reference (k1, in the reward: summed over a trajectory, or token by
            token where an estimator gives each its own); 0 is off.
        drop_uniform_groups: leave out groups whose members all have one reward (or that have one member), so
            that their tokens are in no denominator.
        truncated: what becomes of trajectories that ran out of tokens: keep; mask (in the statistics, not
            trained on); zero_reward.
        max_response_length, overlong_buffer_len, overlong_penalty_factor: DAPO's penalty on the last
            overlong_buffer_len of max_response_length sampled tokens; None is off.
    Loss
        policy_loss: reinforce, importance_sampling, ppo (clip_ratio_low, clip_ratio_high, dual clip at
            clip_ratio_c or None), cispo (cispo_ratio_high, the absolute cap), or a rule of rl/rules.py, a
            user's own included: its knobs are in rule_knobs, and clip_ratio_low and clip_ratio_high here.
        importance_sampling_level: each token's ratio, or its row's geometric mean (sequence).
        bypass_mode: take the ratio to the engine's log-probs instead of the learner's own before the update.
        rollout_is, rollout_is_threshold, rollout_is_threshold_lower: importance weights for what engine and
            learner disagree on; the lower threshold's None is 1 / rollout_is_threshold.
        loss_agg_mode, loss_scale_factor: how token losses become one number; the factor (tokens) is the
            constant of seq-mean-token-sum-norm.
        kl_loss_coef, kl_loss_type, kl_gradient: KL to the reference in the loss; 0 is off.
        off_policy_mask_threshold: leave out A < 0 in rows whose mean of log π_old - log π is above (nats).
        entropy_coeff: weight of the entropy bonus.
    Critic
        critic: none, a value head on the policy's own states, or a separate model.
        cliprange_value, vf_coef: the value loss's clip around the old value (None is off), and its weight.
    """

    name: str
    adv_estimator: str
    gamma: float = 1.0
    lam: float = 1.0
    kl_coef: float = 0.0
    drop_uniform_groups: bool = False
    truncated: Literal["keep", "mask", "zero_reward"] = "keep"
    max_response_length: int | None = None
    overlong_buffer_len: int | None = None
    overlong_penalty_factor: float = 1.0
    policy_loss: str = "ppo"
    rule_knobs: Mapping[str, float] = field(default_factory=dict)
    importance_sampling_level: Literal["token", "sequence"] = "token"
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float | None = None
    cispo_ratio_high: float = 5.0
    bypass_mode: bool = False
    rollout_is: RolloutIs = "none"
    rollout_is_threshold: float = 2.0
    rollout_is_threshold_lower: float | None = None
    loss_agg_mode: LossAggMode = "token-mean"
    loss_scale_factor: float | None = None
    kl_loss_coef: float = 0.0
    kl_loss_type: KlLossType = "k3"
    kl_gradient: KlGradient = "unbiased"
    off_policy_mask_threshold: float | None = None
    entropy_coeff: float = 0.0
    critic: Literal["none", "head", "separate"] = "none"
    cliprange_value: float | None = 0.5
    vf_coef: float = 0.5

    def __post_init__(self) -> None:
        wrong = list(problems(self))
        if wrong:
            raise ValueError(f"algorithm {self.name!r}: " + "; ".join(wrong))

    @property
    def needs(self) -> frozenset[str]:
        """What the learner must add to a batch before `assign_advantages` and `loss`."""
        wanted = {
            "old_logprobs": not self.bypass_mode,
            "ref_logprobs": self.kl_loss_coef > 0 or self.kl_coef > 0,
            "old_values": self.critic != "none",
        }
        return frozenset(name for name, is_needed in wanted.items() if is_needed)

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss differentiates the entropy."""
        return self.entropy_coeff != 0

    @property
    def bounds(self) -> Bounds | None:
        """The rule as an interval of the log-ratio (open ends are None); None for a rule that is not one."""
        low = log1p(-self.clip_ratio_low) if self.clip_ratio_low < 1 else None
        dual = log(self.clip_ratio_c) if self.clip_ratio_c is not None else None
        cap = log(self.cispo_ratio_high)
        return {
            # The ratio held at 1 is -A log π: no ratio at all.
            "reinforce": Bounds((0.0, 0.0), (0.0, 0.0), "stop"),
            "importance_sampling": Bounds((None, None), (None, None), "clamp"),
            "ppo": Bounds((None, log1p(self.clip_ratio_high)), (low, dual), "clamp"),
            "cispo": Bounds((None, cap), (None, cap), "stop"),
        }.get(self.policy_loss)

    def assign_advantages(self, batch: TrainBatch) -> TrainBatch:
        """Fill in `advantages` and, for a critic, `returns` (rl/credit.py)."""
        return assign_advantages(self, batch)

    def loss(
        self,
        logprobs: Tensor,
        entropy: Tensor,
        layout: PaddedLayout,
        counts: LossCounts,
        values: Tensor | None = None,
    ) -> tuple[Tensor, MetricSums]:
        """The loss of one micro-batch, and its share of every metric in LOSS_METRICS that applies.

        A trained token with an input that is not finite leaves the loss, stays in the denominators, and is
        counted in policy/nonfinite_token_frac.

        Args:
            logprobs: (B, T) of the policy, with gradient.
            entropy: (B, T) of the policy.
            values: (B, T) of the critic, with gradient, where the row has one.
            layout: the tokens' other log-probs and advantages.
            counts: denominators of the whole optimizer step.

        Returns:
            A scalar that sums over micro-batches to the step's loss (0 with a graph when nothing is trained).
        """
        x, mask = self._tokens(logprobs, entropy, layout), layout.loss_mask
        log_ratio = at_level(x.log_ratio, x.kept, self.importance_sampling_level)
        per_token, clipped = self._surrogate(x, log_ratio)
        weights = self._rollout_weights(x)
        kl = self._kl(x)
        norm = token_norm(
            mask, layout.weight, counts, loss_agg_mode=self.loss_agg_mode, scale=self.loss_scale_factor
        ).to(x.logprobs.dtype)
        # All three are 0 at tokens that are not kept, where norm is not: the denominators do not shrink.
        pg_loss, kl_loss, entropy_bonus = (
            (y * norm).sum() for y in (weights.weight * per_token, kl, x.entropy)
        )
        loss = pg_loss + self.kl_loss_coef * kl_loss - self.entropy_coeff * entropy_bonus
        value_loss, value_metrics = self._value_loss(values, layout, counts)
        loss = loss + self.vf_coef * value_loss
        metrics = {
            "policy/loss": sum_share(loss),
            "policy/pg_loss": sum_share(pg_loss),
            "policy/entropy": mean_share(x.entropy, x.kept),
            "policy/advantage_mean": mean_share(x.advantages, x.kept),
            "policy/advantage_abs_max": max_share(x.advantages.abs(), x.kept),
            "policy/approx_kl_k1": mean_share(-x.log_ratio, x.kept),
            "policy/approx_kl_k3": mean_share(k3(x.log_ratio), x.kept),
            "policy/nonfinite_token_frac": mean_share(mask & ~x.kept, mask),
            **ratio_metrics(log_ratio, clipped, x.kept, self.importance_sampling_level),
            **gap_metrics(x.log_weight, x.known, mask),
            **self._optional_metrics(x, weights, kl_loss),
            **value_metrics,
        }
        return loss, on_host(metrics)

    def _surrogate(self, x: LossTokens, log_ratio: Tensor) -> tuple[Tensor, Clipped]:
        """The per-token loss of the rule, and where it was clipped or left out."""
        if self.bounds is not None:
            per_token, clipped = surrogate(x.logprobs, log_ratio, x.advantages, self.bounds)
        else:
            clips = {
                knob: getattr(self, knob) for knob in RULE_KNOBS[self.policy_loss] if hasattr(self, knob)
            }
            per_token, clipped = apply_rule(self.policy_loss, RuleTokens.of(x), {**clips, **self.rule_knobs})
        if self.off_policy_mask_threshold is not None:
            delta = self.off_policy_mask_threshold
            per_token = select(off_policy_sequence_mask(x.log_ratio, x.advantages, x.kept, delta), per_token)
        return per_token, clipped

    def _value_loss(
        self, values: Tensor | None, layout: PaddedLayout, counts: LossCounts
    ) -> tuple[Tensor, MetricSums]:
        """The critic's loss, over the same tokens and denominators; 0 without a critic."""
        if self.critic == "none":
            return torch.zeros(()), {}
        return value_loss(
            required(values, "values", self),
            *(required(layout.old_values, "old_values", self), required(layout.returns, "returns", self)),
            layout.loss_mask,
            cliprange_value=self.cliprange_value,
            num_tokens=counts.num_tokens,
        )

    def _tokens(self, logprobs: Tensor, entropy: Tensor, layout: PaddedLayout) -> LossTokens:
        """Find what takes part, and replace the rest before anything is computed with it."""
        mask, rollout, ref = layout.loss_mask, layout.rollout_logprobs, layout.ref_logprobs
        anchor = rollout if self.bypass_mode else required(layout.old_logprobs, "old_logprobs", self)
        learner = logprobs.detach() if self.bypass_mode else anchor
        advantages = required(layout.advantages, "advantages", self)
        inputs = [logprobs, anchor, advantages]
        if self.rollout_is != "none":
            inputs.append(rollout)
        if self.kl_loss_coef:
            inputs.append(required(ref, "ref_logprobs", self))
        if self.entropy_coeff:
            inputs.append(entropy)
        kept = mask & torch.stack([x.isfinite() for x in inputs]).all(0)
        known = mask & learner.isfinite() & rollout.isfinite()
        policy = select(kept, logprobs)
        return LossTokens(
            kept=kept,
            known=known,
            logprobs=policy,
            log_ratio=policy - select(kept, anchor),
            advantages=select(kept, advantages),
            entropy=select(kept & entropy.isfinite(), entropy),
            log_weight=select(known, learner) - select(known, rollout),
            ref_logprobs=select(kept, ref) if self.kl_loss_coef and ref is not None else None,
        )

    def _rollout_weights(self, x: LossTokens) -> RolloutWeights:
        """The weights u; 1 without a correction."""
        if self.rollout_is == "none":
            return RolloutWeights(
                x.kept.to(x.logprobs.dtype), torch.zeros_like(x.kept), torch.zeros_like(x.kept)
            )
        high = self.rollout_is_threshold
        low = 1.0 / high if self.rollout_is_threshold_lower is None else self.rollout_is_threshold_lower
        return rollout_weights(x.log_weight, x.kept, ROLLOUT_IS[self.rollout_is], low=low, high=high)

    def _kl(self, x: LossTokens) -> Tensor:
        """The per-token KL to the reference; 0 without one."""
        if x.ref_logprobs is None:
            return torch.zeros_like(x.logprobs)
        return kl_penalty(
            x.logprobs,
            x.ref_logprobs,
            x.log_ratio,
            kl_loss_type=self.kl_loss_type,
            kl_gradient=self.kl_gradient,
        )

    def _optional_metrics(self, x: LossTokens, weights: RolloutWeights, kl_loss: Tensor) -> MetricSums:
        """Metrics of the terms that this row has."""
        metrics: MetricSums = {}
        if self.rollout_is != "none":
            metrics |= {
                "gap/is_weight_mean": mean_share(weights.weight, x.kept),
                "gap/is_weight_max": max_share(weights.weight, x.kept),
                "gap/is_weight_capped_frac": mean_share(weights.capped, x.kept),
                "gap/is_weight_masked_frac": mean_share(weights.masked, x.kept),
            }
        if x.ref_logprobs is not None:
            delta = x.ref_logprobs - x.logprobs
            metrics |= {
                "policy/kl_loss": sum_share(kl_loss),
                "policy/kl_ref_k1": mean_share(k1(delta), x.kept),
                "policy/kl_ref_k3": mean_share(k3(delta), x.kept),
            }
        return metrics
