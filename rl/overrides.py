"""What a run may change in its algorithm's row: a field a knob, None where the row's own value stays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import Annotated, Any


@dataclass(frozen=True, slots=True)
class Range:
    """The values a number may take, ends included; `above_zero` leaves 0 out."""

    low: float
    high: float = inf
    above_zero: bool = False


Count = Annotated[int, Range(1)]
Size = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above_zero=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 0.999999)]


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Overrides of the algorithm's row (rl/policy_gradient.py says what each knob selects)."""

    adv_estimator: str | None = None
    """How rewards become advantages."""
    gamma: Share | None = None
    """Discount a sampled token, for estimators that give each token its own advantage; gigpo: a turn."""
    lam: Share | None = None
    """Lambda of generalized advantage estimation (GAE)."""
    opd_kl_coef: NonNegative | None = None
    """On-policy distillation: what a nat of log-prob above the teacher's costs a token."""
    hint: str | None = None
    """Self-distillation: what the policy as its own teacher is told before the task; {answer} stands for the
    task's reference answer."""
    kl_coef: NonNegative | None = None
    """Weight of the KL to the starting policy in the reward."""
    target_kl: Positive | None = None
    """The KL in nats a token that kl_coef follows; without it kl_coef stays."""
    kl_horizon: Positive | None = None
    """Trajectories over which kl_coef changes by at most a fifth."""
    length_adaptive_alpha: Positive | None = None
    """VAPO: lambda is 1 - 1 / (alpha n) for n sampled tokens."""
    turn_advantage_coef: NonNegative | None = None
    """Weight of the advantage within a turn (mt_grpo, gigpo)."""
    step_wise: bool | None = None
    """Whether every turn is a sample of its own, with a ratio of its own where ratios are a sequence's."""
    reward_weights: dict[str, float] | None = None
    """GDPO: parts of the reward with their weights, as name and value pairs: answer 1 operations 0.5."""
    oversample: Count | None = None
    """Of each group one in so many members is trained on, those with the fewest failed calls (GRPO-RoC)."""
    drop_uniform_groups: bool | None = None
    """Whether groups whose members all have one reward are left out."""
    dynamic_sampling: bool | None = None
    """Whether other groups are sampled in place of those whose members all have one reward."""
    min_group: Count | None = None
    """Scored members below which a group carries no weight, for rows that compare members; 2 unless given."""
    truncated: str | None = None
    """What becomes of trajectories that ran out of tokens: keep, mask or zero_reward."""
    max_response_length: Count | None = None
    """Longest response, in sampled tokens, for the overlong penalty."""
    overlong_buffer_len: Count | None = None
    """The last tokens of it, over which the overlong penalty grows."""
    overlong_penalty_factor: Positive | None = None
    """The overlong penalty at the longest response."""
    policy_loss: str | None = None
    """The rule that makes a loss of ratio and advantage."""
    jsd_beta: Share | None = None
    """Generalized JSD to the teacher: 0 is the forward KL, 1 the reverse KL."""
    rule_knobs: dict[str, float] | None = None
    """Knobs of a rule of rl/rules.py, as name and value pairs: tau_pos 1.0 tau_neg 1.05."""
    importance_sampling_level: str | None = None
    """Whether the ratio is each token's (token) or its row's geometric mean (sequence)."""
    clip_ratio_low: Share | None = None
    """How far the ratio may fall below 1 before it is clipped."""
    clip_ratio_high: NonNegative | None = None
    """How far the ratio may rise above 1 before it is clipped."""
    clip_ratio_c: Annotated[float, Range(1)] | None = None
    """Dual clip: the largest ratio that counts where the advantage is negative."""
    cispo_ratio_high: Positive | None = None
    """CISPO's cap of the ratio, absolute."""
    bypass_mode: bool | None = None
    """Take the ratio to the engine's log-probs instead of the learner's own."""
    rollout_is: str | None = None
    """Correction of the difference between engine and learner by importance weights: none, token_tis, ..."""
    rollout_is_threshold: Positive | None = None
    """Cap of those weights."""
    rollout_is_threshold_lower: NonNegative | None = None
    """Where masking corrections begin to keep them."""
    loss_agg_mode: str | None = None
    """How token losses become one number, e.g. token-mean or seq-mean-token-mean."""
    loss_scale_factor: Positive | None = None
    """The constant that seq-mean-token-sum-norm divides by, in tokens."""
    kl_loss_coef: NonNegative | None = None
    """Weight of the KL penalty against the starting policy in the loss."""
    kl_loss_type: str | None = None
    """Estimator of that KL: k1, k2 or k3."""
    kl_gradient: str | None = None
    """Gradient of that KL: unbiased (the reverse KL's) or naive (the estimator's own)."""
    off_policy_mask_threshold: NonNegative | None = None
    """Leave out A < 0 in rows whose mean of log π_old - log π is above this (nats)."""
    entropy_coeff: NonNegative | None = None
    """Weight of the entropy bonus."""
    z_loss_coef: NonNegative | None = None
    """Weight of the mean squared log of the softmax's denominator, which keeps logits small."""
    router_aux_loss_coef: NonNegative | None = None
    """Weight of the load-balancing loss of a mixture of experts."""
    critic: str | None = None
    """none, head (values from the policy's own states) or separate (from a model of its own)."""
    cliprange_value: Positive | None = None
    """How far a value may move from the old one before it is clipped."""
    vf_coef: NonNegative | None = None
    """Weight of the value loss."""

    @property
    def overrides(self) -> dict[str, Any]:
        """The knobs that are given."""
        named = {field.name: getattr(self, field.name) for field in fields(Overrides)}
        return {name: value for name, value in named.items() if value is not None}
