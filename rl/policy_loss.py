"""The loss of a policy-gradient row: its rule, weights, KL, entropy and critic, with the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl.batch import LossCounts
from rl.critic import value_loss
from rl.layout import PaddedLayout
from rl.loss_metrics import (
    gap_metrics,
    ratio_metrics,
    reference_metrics,
    teacher_metrics,
    token_metrics,
    weight_metrics,
)
from rl.losses import (
    ROLLOUT_IS,
    Clipped,
    LossTokens,
    RolloutWeights,
    at_level,
    kl_penalty,
    rollout_weights,
    surrogate,
    token_norm,
)
from rl.numerics import MetricSums, mean_share, on_host, select, sum_share
from rl.outputs import TokenOutputs
from rl.rules import RULE_KNOBS, RuleTokens, apply_rule, off_policy_sequence_mask
from rl.shaping import required

if TYPE_CHECKING:
    from rl.policy_gradient import PolicyGradient


def policy_gradient_loss(
    row: PolicyGradient,
    outputs: TokenOutputs,
    layout: PaddedLayout,
    counts: LossCounts,
) -> tuple[Tensor, MetricSums]:
    """See PolicyGradient.loss."""
    x, mask = _tokens(row, outputs.logprobs, outputs.entropy, layout), layout.loss_mask
    log_ratio = at_level(x.log_ratio, x.kept, row.importance_sampling_level)
    per_token, clipped, rule_metrics = _surrogate(row, x, log_ratio)
    if row.compares_distributions:
        per_token = select(x.kept, required(outputs.divergence, "divergence", row))
    weights = _rollout_weights(row, x)
    kl = _kl(row, x)
    norm = token_norm(
        mask, layout.weight, counts, loss_agg_mode=row.loss_agg_mode, scale=row.loss_scale_factor
    ).to(x.logprobs.dtype)
    # All three are 0 at tokens that are not kept, where norm is not: the denominators do not shrink.
    pg_loss, kl_loss, entropy_bonus = ((y * norm).sum() for y in (weights.weight * per_token, kl, x.entropy))
    loss = pg_loss + row.kl_loss_coef * kl_loss - row.entropy_coeff * entropy_bonus
    value_loss, value_metrics = _value_loss(row, outputs.values, layout, counts)
    loss = loss + row.vf_coef * value_loss
    shape_loss, shape_metrics = _logit_and_router_loss(row, x, outputs, counts)
    loss = loss + shape_loss
    metrics = {
        "policy/loss": sum_share(loss),
        "policy/pg_loss": sum_share(pg_loss),
        **token_metrics(x, mask),
        **ratio_metrics(log_ratio, clipped, x.kept, row.importance_sampling_level),
        **rule_metrics,
        **gap_metrics(x),
        "gap/missing_logprob_frac": mean_share(mask & ~layout.rollout_logprobs.isfinite(), mask),
        **(weight_metrics(weights, x.kept) if row.rollout_is != "none" else {}),
        **({"policy/kl_loss": sum_share(kl_loss)} if row.kl_loss_coef else {}),
        **reference_metrics(row, x, layout.ref_logprobs),
        **teacher_metrics(x, layout.teacher_logprobs),
        **value_metrics,
        **shape_metrics,
    }
    return loss, on_host(metrics)


def _surrogate(row: PolicyGradient, x: LossTokens, log_ratio: Tensor) -> tuple[Tensor, Clipped, MetricSums]:
    """The per-token loss of the rule, where it was clipped or left out, and what was left out besides."""
    if row.bounds is not None:
        per_token, clipped = surrogate(x.logprobs, log_ratio, x.advantages, row.bounds)
    else:
        clips = {knob: getattr(row, knob) for knob in RULE_KNOBS[row.policy_loss] if hasattr(row, knob)}
        per_token, clipped = apply_rule(row.policy_loss, RuleTokens.of(x), {**clips, **row.rule_knobs})
    if row.off_policy_mask_threshold is not None:
        delta = row.off_policy_mask_threshold
        near = off_policy_sequence_mask(x.log_ratio, x.advantages, x.kept, delta)
        masked = {"policy/off_policy_masked_frac": mean_share(x.kept & ~near, x.kept)}
        return select(near, per_token), clipped, masked
    return per_token, clipped, {}


def _value_loss(
    row: PolicyGradient, values: Tensor | None, layout: PaddedLayout, counts: LossCounts
) -> tuple[Tensor, MetricSums]:
    """The critic's loss, over the same tokens and denominators; 0 without a critic."""
    if row.critic == "none":
        return torch.zeros(()), {}
    return value_loss(
        required(values, "values", row),
        *(required(layout.old_values, "old_values", row), required(layout.returns, "returns", row)),
        layout.loss_mask,
        cliprange_value=row.cliprange_value,
        num_tokens=counts.num_tokens,
    )


def _tokens(row: PolicyGradient, logprobs: Tensor, entropy: Tensor, layout: PaddedLayout) -> LossTokens:
    """Find what takes part, and replace the rest before anything is computed with it."""
    mask, rollout, ref = layout.loss_mask, layout.rollout_logprobs, layout.ref_logprobs
    anchor = rollout if row.bypass_mode else required(layout.old_logprobs, "old_logprobs", row)
    # The gap is between engine and learner at one version: the policy of this very moment may have moved on.
    learner = logprobs.detach() if layout.old_logprobs is None else layout.old_logprobs
    advantages = required(layout.advantages, "advantages", row)
    inputs = [logprobs, anchor, advantages]
    if row.rollout_is != "none":
        inputs.append(rollout)
    if row.kl_loss_coef:
        inputs.append(required(ref, "ref_logprobs", row))
    if row.entropy_coeff:
        inputs.append(entropy)
    kept = mask & torch.stack([x.isfinite() for x in inputs]).all(0)
    known = mask & learner.isfinite() & rollout.isfinite()
    measured = kept & entropy.isfinite()
    policy = select(kept, logprobs)
    return LossTokens(
        kept=kept,
        known=known,
        logprobs=policy,
        log_ratio=policy - select(kept, anchor),
        advantages=select(kept, advantages),
        entropy=select(measured, entropy),
        measured=measured,
        rollout_logprobs=select(known, rollout),
        log_weight=select(known, learner) - select(known, rollout),
        ref_logprobs=select(kept, ref) if row.kl_loss_coef and ref is not None else None,
    )


def _rollout_weights(row: PolicyGradient, x: LossTokens) -> RolloutWeights:
    """The weights u; 1 without a correction."""
    if row.rollout_is == "none":
        return RolloutWeights(x.kept.to(x.logprobs.dtype), torch.zeros_like(x.kept), torch.zeros_like(x.kept))
    high = row.rollout_is_threshold
    low = 1.0 / high if row.rollout_is_threshold_lower is None else row.rollout_is_threshold_lower
    return rollout_weights(x.log_weight, x.kept, ROLLOUT_IS[row.rollout_is], low=low, high=high)


def _kl(row: PolicyGradient, x: LossTokens) -> Tensor:
    """The per-token KL to the reference; 0 without one."""
    if x.ref_logprobs is None:
        return torch.zeros_like(x.logprobs)
    return kl_penalty(
        x.logprobs,
        x.ref_logprobs,
        x.log_ratio,
        kl_loss_type=row.kl_loss_type,
        kl_gradient=row.kl_gradient,
    )


def _logit_and_router_loss(
    row: PolicyGradient, x: LossTokens, outputs: TokenOutputs, counts: LossCounts
) -> tuple[Tensor, MetricSums]:
    """The z-loss and the load-balancing loss, by a micro-batch's share of the trained tokens."""
    total, metrics = torch.zeros(()), {}
    if row.z_loss_coef:
        log_z = select(x.kept, required(outputs.log_z, "log_z", row))
        z_loss = log_z.square().sum() / max(counts.num_tokens, 1)
        total, metrics = row.z_loss_coef * z_loss, {"policy/z_loss": sum_share(z_loss)}
    if row.router_aux_loss_coef:
        # It is no sum over tokens, so this term alone depends on how an update is split into micro-batches.
        share = x.kept.sum() / max(counts.num_tokens, 1)
        router_loss = share * required(outputs.router_loss, "router_loss", row)
        total = total + row.router_aux_loss_coef * router_loss
        metrics |= {"policy/router_loss": sum_share(router_loss)}
    return total, metrics
