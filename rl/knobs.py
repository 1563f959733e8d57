"""Which knobs of an algorithm fit together, and which would change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from envs.names import unknown_name
from rl.credit import BUILT_IN, CREDITS, CRITIC_ESTIMATORS, TOKEN_ESTIMATORS, TURN_ESTIMATORS
from rl.losses import ROLLOUT_IS, PolicyLoss
from rl.rules import RULE_KNOBS, RULES, rule_knobs

if TYPE_CHECKING:
    from rl.policy_gradient import PolicyGradient

PPO_CLIPS = {"clip_ratio_low", "clip_ratio_high", "clip_ratio_c"}
TOKEN_RULES = {"sapo", "dppo_tv", "dppo_kl", "kimi", "opmd"}
"""Rules that see a token and nothing of its row."""
SHAPING = ("max_response_length", "overlong_buffer_len", "overlong_penalty_factor")


def problems(row: PolicyGradient) -> Iterator[str]:
    """What is wrong with a row, in words."""
    for name, hint in get_type_hints(type(row)).items():
        value = getattr(row, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            yield unknown_name(name, value, get_args(hint))
    at_least = {
        "clip_ratio_low": 0,
        "clip_ratio_high": 0,
        "kl_loss_coef": 0,
        "kl_coef": 0,
        "entropy_coeff": 0,
        "z_loss_coef": 0,
        "router_aux_loss_coef": 0,
        "gamma": 0,
        "lam": 0,
        "vf_coef": 0,
        "opd_kl_coef": 0,
        "turn_advantage_coef": 0,
    }
    above = {
        "cispo_ratio_high": 0,
        "rollout_is_threshold": 0,
        "oversample": 0,
        "min_group": 0,
        "loss_scale_factor": 0,
        "overlong_buffer_len": 0,
        "cliprange_value": 0,
        "target_kl": 0,
        "kl_horizon": 0,
        "length_adaptive_alpha": 0,
    }
    for name, low in at_least.items():
        value = getattr(row, name)
        if not (isfinite(value) and value >= low):
            yield f"{name} = {value}: expected at least {low}"
    for name, low in above.items():
        value = getattr(row, name)
        if value is not None and not (isfinite(value) and value > low):
            yield f"{name} = {value}: expected more than {low}"
    yield from _rule_problems(row)
    yield from _credit_problems(row)
    if row.hint and row.policy_loss == "jsd":
        yield (
            f"hint = {row.hint!r} with policy_loss 'jsd': whole distributions are compared with those of "
            "another model; leave it out, or use row opsd"
        )
    weights = row.reward_weights.values()
    if weights and not (all(isfinite(weight) for weight in weights) and any(weights)):
        yield f"reward_weights = {dict(row.reward_weights)}: expected finite numbers, not all of them 0"
    if not 0 <= row.jsd_beta <= 1:
        yield f"jsd_beta = {row.jsd_beta}: expected 0 (forward KL) to 1 (reverse KL)"
    if row.dynamic_sampling and not row.drop_uniform_groups:
        yield (
            "dynamic_sampling without drop_uniform_groups: where its bound is reached, what was sampled in "
            "vain would be trained on; set both"
        )
    if row.clip_ratio_low > 1:
        yield f"clip_ratio_low = {row.clip_ratio_low}: expected at most 1; the band is 1 - low to 1 + high"
    if row.clip_ratio_c is not None and not row.clip_ratio_c > 1:
        yield f"clip_ratio_c = {row.clip_ratio_c}: expected more than 1, the ratio on policy"
    lower = row.rollout_is_threshold_lower
    if lower is not None and not 0 <= lower < row.rollout_is_threshold:
        yield f"rollout_is_threshold_lower = {lower}: expected 0 <= lower < rollout_is_threshold"
    if row.loss_agg_mode == "seq-mean-token-sum-norm" and row.loss_scale_factor is None:
        yield "loss_agg_mode seq-mean-token-sum-norm divides by loss_scale_factor; give it (tokens)"
    if row.bypass_mode and row.rollout_is != "none":
        yield (
            f"rollout_is = {row.rollout_is!r} with bypass_mode: the ratio is to the engine already, so "
            "nothing is left to correct; set rollout_is to 'none'"
        )
    buffer, longest = row.overlong_buffer_len, row.max_response_length
    if (buffer is None) != (longest is None):
        yield "overlong_buffer_len and max_response_length work together: give both or neither"
    elif buffer is not None and longest is not None and buffer > longest:
        yield f"overlong_buffer_len = {buffer} is above max_response_length = {longest}; lower it"


def _rule_problems(row: PolicyGradient) -> Iterator[str]:
    """The rule must exist, and have the knobs that are given."""
    if row.policy_loss == "ipo":
        yield (
            "policy_loss 'ipo' names two things: DPO's relative is a preference loss, and prime-rl's is a "
            "trust region, here policy_loss 'dppo_tv'"
        )
    elif row.policy_loss not in {*get_args(PolicyLoss), *RULES}:
        yield unknown_name("policy_loss", row.policy_loss, [*get_args(PolicyLoss), *RULES])
    elif row.policy_loss in RULES:
        try:
            rule_knobs(row.policy_loss, row.rule_knobs)
        except ValueError as error:
            yield str(error)
    elif row.rule_knobs:
        yield (
            f"rule_knobs = {dict(row.rule_knobs)}: policy_loss {row.policy_loss!r} has its knobs as fields "
            "of its own"
        )


def _credit_problems(row: PolicyGradient) -> Iterator[str]:
    """The estimator must exist, and a critic be there where it is needed and only there."""
    if row.adv_estimator not in CREDITS:
        yield unknown_name("adv_estimator", row.adv_estimator, CREDITS)
    elif row.adv_estimator in CRITIC_ESTIMATORS and row.critic == "none":
        yield (
            f"adv_estimator {row.adv_estimator!r} needs the values of a critic; set critic to 'head' (on the "
            "policy's own states) or 'separate' (a model of its own)"
        )
    elif row.adv_estimator not in CRITIC_ESTIMATORS and row.critic != "none":
        yield (
            f"critic {row.critic!r} has no effect: adv_estimator {row.adv_estimator!r} uses no values; set "
            f"critic to 'none' or adv_estimator to one of {', '.join(sorted(CRITIC_ESTIMATORS))}"
        )
    for knob in ("gamma", "lam"):
        if getattr(row, knob) > 1:
            yield f"{knob} = {getattr(row, knob)}: expected 0 to 1"


def _compares_sequences(row: PolicyGradient) -> bool:
    """Whether something in the row depends on where a sample begins and ends."""
    correction = ROLLOUT_IS.get(row.rollout_is)
    return (
        row.importance_sampling_level == "sequence"
        or (correction is not None and {correction.gate, correction.weight} != {"token"})
        or row.off_policy_mask_threshold is not None
        or row.adv_estimator in {"gae", "vapo", "reinforce_plus_plus"}
        or row.policy_loss in {*RULES} - TOKEN_RULES
    )


def without_effect(row: PolicyGradient) -> Iterator[tuple[str, str]]:
    """Knobs that change nothing in `row`, each with the reason."""
    clips = {"ppo": PPO_CLIPS}.get(row.policy_loss, set(RULE_KNOBS.get(row.policy_loss, ())))
    for knob in sorted(PPO_CLIPS - clips):
        yield knob, f"policy_loss {row.policy_loss!r} has no such clip"
    if row.adv_estimator not in {*TOKEN_ESTIMATORS, "gigpo", "gigpo_std"} - {"reinforce_plus_plus_baseline"}:
        yield "gamma", f"adv_estimator {row.adv_estimator!r} discounts nothing"
    if row.adv_estimator != "vapo":
        yield "length_adaptive_alpha", f"adv_estimator {row.adv_estimator!r} has one λ for all lengths"
    if row.adv_estimator not in TURN_ESTIMATORS:
        yield "turn_advantage_coef", f"adv_estimator {row.adv_estimator!r} gives turns nothing of their own"
    if row.adv_estimator in BUILT_IN and not row.compares_members:
        yield "min_group", f"adv_estimator {row.adv_estimator!r} compares no members of a group"
    if row.kl_coef == 0:
        yield "target_kl", "kl_coef is 0: there is no KL in the reward"
    if row.target_kl is None:
        yield "kl_horizon", "there is no target_kl"
    if row.adv_estimator == "gdpo":
        for knob in (*SHAPING, "kl_coef"):
            yield knob, "adv_estimator 'gdpo' compares the parts of the reward, not the whole"
    else:
        yield "reward_weights", f"adv_estimator {row.adv_estimator!r} takes the reward as a whole"
    if not _compares_sequences(row):
        yield "step_wise", "nothing in this row is a sequence's: the gradient is the same, split or whole"
    if row.adv_estimator not in CRITIC_ESTIMATORS:
        for knob in ("lam", "cliprange_value", "vf_coef"):
            yield knob, f"adv_estimator {row.adv_estimator!r} has no critic"
    if row.policy_loss != "cispo":
        yield "cispo_ratio_high", f"policy_loss {row.policy_loss!r} is not cispo"
    if row.adv_estimator != "opd":
        yield "opd_kl_coef", f"adv_estimator {row.adv_estimator!r} has no teacher"
        yield "hint", f"adv_estimator {row.adv_estimator!r} has no teacher"
    if row.policy_loss != "jsd":
        yield "jsd_beta", f"policy_loss {row.policy_loss!r} is not jsd"
    else:
        for knob in ("adv_estimator", "gamma", "importance_sampling_level", "off_policy_mask_threshold"):
            yield knob, "policy_loss 'jsd' uses no advantage and no ratio"
    if row.truncated == "zero_reward" and (row.uses_teacher or row.adv_estimator == "gdpo"):
        yield "truncated", f"adv_estimator {row.adv_estimator!r} does not use the reward as a whole"
    if row.uses_teacher:
        for knob in ("kl_coef", *SHAPING):
            yield knob, "a teacher takes the reward's place"
    if row.policy_loss == "reinforce":
        yield "importance_sampling_level", "policy_loss 'reinforce' uses no ratio"
    if row.kl_loss_coef == 0:
        for knob in ("kl_loss_type", "kl_gradient"):
            yield knob, "kl_loss_coef is 0"
    if row.loss_agg_mode != "seq-mean-token-sum-norm":
        yield (
            "loss_scale_factor",
            f"only loss_agg_mode 'seq-mean-token-sum-norm' uses it, not {row.loss_agg_mode!r}",
        )
    if row.rollout_is == "none":
        yield "rollout_is_threshold", "rollout_is is 'none'"
    if row.rollout_is == "none" or ROLLOUT_IS[row.rollout_is].action != "mask":
        yield "rollout_is_threshold_lower", f"rollout_is {row.rollout_is!r} has no lower end"
    if row.max_response_length is None:
        yield "overlong_penalty_factor", "there is no max_response_length"
