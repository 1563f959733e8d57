"""One policy-gradient algorithm: its knobs, what it needs, and the two functions that it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log, log1p
from typing import Any, Literal, Self

from torch import Tensor

from rl.batch import LossCounts, TrainBatch
from rl.credit import TEACHER_ESTIMATORS, assign_advantages, compares_members
from rl.critic import AdaptiveKlController
from rl.knobs import problems
from rl.layout import PaddedLayout
from rl.losses import Bounds, KlGradient, KlLossType, LossAggMode, RolloutIs
from rl.numerics import MetricSums
from rl.objective import Objective
from rl.outputs import TokenOutputs
from rl.policy_loss import policy_gradient_loss
from rl.spo import PromptBaselines


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient(Objective):
    """One algorithm. Knobs carry verl's names; see rl/advantages.py and rl/losses.py for what they select.

    Advantages
        adv_estimator: a key of CREDITS (rl/credit.py).
        gamma, lam: discount a sampled token (GiGPO: a turn), and GAE's λ, for estimators that use them.
        kl_coef: weight of the KL to the reference (k1, in the reward: summed over a trajectory, or token by
            token where an estimator gives each its own); 0 is off.
        oversample: of each group one in so many members is kept, those that reached their reward most cleanly
            (GRPO-RoC, rl/filters.py); 1 keeps all.
        drop_uniform_groups: leave out groups whose members all have one reward (or that have one member), so
            that their tokens are in no denominator.
        dynamic_sampling: sample other groups in their place (DAPO); without it a step has fewer.
        min_group: a group with fewer scored members carries no weight: it is left out, so that its tokens are
            in no denominator. None is 2 where a built-in
            estimator compares the members of a group, else 1.
        truncated: what becomes of trajectories that ran out of tokens: keep; mask (in the statistics, not
            trained on); zero_reward.
        target_kl, kl_horizon: where target_kl (nats a token) is given, kl_coef follows it: a step multiplies
            it by 1 + clip(KL / target_kl - 1, ±0.2) · trajectories / kl_horizon (arXiv 1909.08593, 2.2).
        length_adaptive_alpha: VAPO's α; its λ is 1 - 1 / (α n) for n sampled tokens, and lam the critic's.
        turn_advantage_coef: weight of the advantage within a turn, MT-GRPO's λ and GiGPO's ω.
        step_wise: every turn a sample of its own, with its own ratio where ratios are a sequence's; the
            trajectory weighs what it weighs whole.
        reward_weights: of the estimator gdpo, the parts of the reward and their weights; empty is every part
            that is not a part of a part, each 1.
        opd_kl_coef: of the estimator opd, what a nat of log π - log π_teacher costs a token.
        hint: the teacher of the estimator opd is the policy itself before the update, told this in a system
            message before the task's own ({answer}: the task's reference answer); "" is a model of its own.
        max_response_length, overlong_buffer_len, overlong_penalty_factor: DAPO's penalty on the last
            overlong_buffer_len of max_response_length sampled tokens; None is off.
    Loss
        policy_loss: reinforce, importance_sampling, ppo (clip_ratio_low, clip_ratio_high, dual clip at
            clip_ratio_c or None), cispo (cispo_ratio_high, the absolute cap), or a rule of rl/rules.py, a
            user's own included: its knobs are in rule_knobs, and clip_ratio_low and clip_ratio_high here; or
            jsd, the divergence between the whole distributions of policy and teacher (jsd_beta: 0 forward KL,
            1 reverse KL), which needs no advantage.
        importance_sampling_level: each token's ratio, or its row's geometric mean (sequence).
        bypass_mode: take the ratio to the engine's log-probs instead of the learner's own before the update.
        rollout_is, rollout_is_threshold, rollout_is_threshold_lower: importance weights for what engine and
            learner disagree on; the lower threshold's None is 1 / rollout_is_threshold.
        loss_agg_mode, loss_scale_factor: how token losses become one number; the factor (tokens) is the
            constant of seq-mean-token-sum-norm.
        kl_loss_coef, kl_loss_type, kl_gradient: KL to the reference in the loss; 0 is off.
        off_policy_mask_threshold: leave out A < 0 in rows whose mean of log π_old - log π is above (nats).
        entropy_coeff: weight of the entropy bonus.
        z_loss_coef: weight of the mean (log Z)² of trained tokens (PaLM, arXiv 2204.02311, section 5), which
            keeps logits from drifting to where bfloat16 is coarse.
        router_aux_loss_coef: weight of the load-balancing loss (arXiv 2101.03961, eq. 4) of each pass,
            by its share of the trained tokens: it alone depends on micro-batches and ranks.
    Critic
        critic: none, a value head on the policy's own states, or a separate model.
        cliprange_value, vf_coef: the value loss's clip around the old value (None is off), and its weight.
    """

    name: str
    adv_estimator: str
    gamma: float = 1.0
    lam: float = 1.0
    kl_coef: float = 0.0
    target_kl: float | None = None
    kl_horizon: float = 10_000.0
    length_adaptive_alpha: float = 0.05
    turn_advantage_coef: float = 1.0
    step_wise: bool = False
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    oversample: int = 1
    drop_uniform_groups: bool = False
    dynamic_sampling: bool = False
    min_group: int | None = None
    truncated: Literal["keep", "mask", "zero_reward"] = "keep"
    max_response_length: int | None = None
    overlong_buffer_len: int | None = None
    overlong_penalty_factor: float = 1.0
    opd_kl_coef: float = 1.0
    hint: str = ""
    policy_loss: str = "ppo"
    jsd_beta: float = 0.5
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
    z_loss_coef: float = 0.0
    router_aux_loss_coef: float = 0.0
    critic: Literal["none", "head", "separate"] = "none"
    cliprange_value: float | None = 0.5
    vf_coef: float = 0.5

    def __post_init__(self) -> None:
        wrong = list(problems(self))
        if wrong:
            raise ValueError(f"algorithm {self.name!r}: " + "; ".join(wrong))

    @property
    def needs(self) -> frozenset[str]:
        """What `assign_advantages` and `loss` ask of a batch."""
        wanted = {
            "old_logprobs": not self.bypass_mode,
            "ref_logprobs": self.kl_loss_coef > 0 or self.kl_coef > 0,
            "old_values": self.critic != "none",
            "teacher_logprobs": self.uses_teacher,
        }
        return frozenset(name for name, is_needed in wanted.items() if is_needed)

    def needs_for(self, num_updates: int) -> frozenset[str]:
        """What of `needs` must be scored before a step of `num_updates` updates.

        The weights of its only update are those before it, so that update computes old_logprobs on its way,
        where neither advantages nor a critic, which scores with it, look at them first.
        """
        looks_first = self.kl_coef > 0 or self.adv_estimator in TEACHER_ESTIMATORS
        if num_updates > 1 or looks_first or self.critic != "none":
            return self.needs | {"old_logprobs"}
        return self.needs - {"old_logprobs"}

    @property
    def compares_members(self) -> bool:
        """Whether an advantage depends on the other members of the group."""
        return self.policy_loss != "jsd" and compares_members(self.adv_estimator)

    @property
    def least_group(self) -> int:
        """`min_group` in numbers."""
        return self.min_group or (2 if self.compares_members else 1)

    @property
    def uses_teacher(self) -> bool:
        """Whether the row learns from a teacher."""
        return self.adv_estimator in TEACHER_ESTIMATORS or self.compares_distributions

    @property
    def compares_distributions(self) -> bool:
        """Whether the loss is a divergence of whole distributions."""
        return self.policy_loss == "jsd"

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss differentiates the entropy."""
        return self.entropy_coeff != 0

    @property
    def uses_router_loss(self) -> bool:
        """Whether the loss balances a mixture's experts."""
        return self.router_aux_loss_coef != 0

    @property
    def needs_log_z(self) -> bool:
        """Whether the loss holds log Σ exp of the logits near 0."""
        return self.z_loss_coef != 0

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
            "jsd": Bounds((None, None), (None, None), "clamp"),  # for its ratio metrics alone
            "ppo": Bounds((None, log1p(self.clip_ratio_high)), (low, dual), "clamp"),
            "cispo": Bounds((None, cap), (None, cap), "stop"),
        }.get(self.policy_loss)

    def assign_advantages(self, batch: TrainBatch) -> TrainBatch:
        """Fill in `advantages` and, for a critic, `returns` (rl/credit.py)."""
        return assign_advantages(self, batch)

    def start(self) -> Self | PromptBaselines:
        """The row itself, or with baselines by prompt."""
        return PromptBaselines(row=self) if self.adv_estimator == "spo" else self

    def after_step(self, metrics: Mapping[str, float]) -> Self:
        """The row of the next step: with another kl_coef where it follows target_kl."""
        kl = metrics.get("policy/kl_in_reward")
        if self.target_kl is None or kl is None:
            return self
        controller = AdaptiveKlController(
            kl_coef=self.kl_coef, target_kl=self.target_kl, horizon=self.kl_horizon
        )
        num_trajectories = int(metrics["rollout/trajectories"])
        return replace(self, kl_coef=controller.update(kl, num_trajectories).kl_coef)

    def state(self) -> dict[str, Any]:
        return {} if self.target_kl is None else {"kl_coef": self.kl_coef}

    def restored(self, state: Mapping[str, Any]) -> Self:
        return replace(self, **state)

    def loss(
        self,
        outputs: TokenOutputs,
        layout: PaddedLayout,
        counts: LossCounts,
    ) -> tuple[Tensor, MetricSums]:
        """The loss of one micro-batch, and its share of every metric in LOSS_METRICS that applies.

        A trained token with an input that is not finite leaves the loss, stays in the denominators, and is
        counted in policy/nonfinite_token_frac.

        Args:
            outputs: of the policy, (B, T) with gradient.
            layout: the tokens' other log-probs and advantages.
            counts: denominators of the whole optimizer step.

        Returns:
            A scalar that sums over micro-batches to the step's loss (0 with a graph when nothing is trained).
        """
        return policy_gradient_loss(self, outputs, layout, counts)
