"""The table of policy-gradient algorithms: its rows (rl/rows.py) by name, with knobs, and in words."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from typing import Any

from envs.names import load_object, unknown_name
from rl.conversions import converted
from rl.credit import TURN_ESTIMATORS
from rl.knobs import without_effect
from rl.policy_gradient import PolicyGradient
from rl.rows import ALGORITHMS
from rl.rules import RULE_KNOBS, rule_knobs

logger = logging.getLogger(__name__)

__all__ = ["ALGORITHMS", "PolicyGradient", "describe", "get_algorithm"]


def get_algorithm(name: str, **overrides: Any) -> PolicyGradient:
    """The row `name`, with knobs overridden. None keeps the row's own value.

    Other libraries' names are converted (rl/aliases.py), which is logged.

    Raises:
        ValueError: an unknown row, knob or value (with the nearest known one), an ambiguous one of another
            library (with what to give), or a knob that has no effect in the row that results.
    """
    row = base_row(name)
    named = {knob: value for knob, value in overrides.items() if value is not None}
    given, conversions = converted(named, knobs_of(row))
    for conversion in conversions:
        logger.info("algorithm %s: %s", row.name, conversion)
    knobs = [*knobs_of(row)]
    for knob in given:
        if knob not in knobs:
            raise ValueError(unknown_name(f"knob of algorithm {name!r}", knob, knobs))
    row = replace(row, **given)
    for knob, reason in without_effect(row):
        if knob in given:
            raise ValueError(
                f"{knob} = {given[knob]!r} has no effect in algorithm {name!r}: {reason}; leave it out"
            )
    return row


def base_row(name: str) -> PolicyGradient:
    """The row `name` of the table, or the user's own (load_algorithm). ValueError for an unknown one."""
    row = load_algorithm(name) if ":" in name else ALGORITHMS.get(name)
    if row is None:
        raise ValueError(unknown_name("algorithm", name, ALGORITHMS))
    return row


def knobs_of(row: PolicyGradient) -> dict[str, Any]:
    """Every knob of a row by name."""
    return {field.name: getattr(row, field.name) for field in fields(row) if field.name != "name"}


def load_algorithm(spec: str) -> PolicyGradient:
    """A user's own row, `file.py:ROW` or `package.module:ROW`.

    Its file may register rules (rl.rules.register_rule) and estimators (rl.credit.register_estimator) first.
    """
    row = load_object(spec)
    if not isinstance(row, PolicyGradient):
        raise ValueError(f"algorithm {spec!r} is a {type(row).__name__}; expected a PolicyGradient")
    return row


def describe(algorithm: PolicyGradient) -> str:
    """One line that says what the row does, with every number that matters in it."""
    a = algorithm
    rule = {
        "reinforce": "-A log π",
        "importance_sampling": "-A r, unclipped",
        "ppo": f"ratio clipped to [{1 - a.clip_ratio_low:g}, {1 + a.clip_ratio_high:g}]"
        + (f", dual clip {a.clip_ratio_c:g}" if a.clip_ratio_c is not None else ""),
        "jsd": f"generalized JSD to the teacher, β {a.jsd_beta:g}",
        "cispo": f"-sg(min(r, {a.cispo_ratio_high:g})) A log π",
    }.get(a.policy_loss) or _knobs_of_rule(a)
    parts = [
        f"{a.name}: advantage {a.adv_estimator}",
        f"{a.policy_loss} ({rule}; {a.importance_sampling_level} level, to the "
        f"{'engine' if a.bypass_mode else 'learner before the update'})",
        f"the teacher is the policy itself, told {a.hint!r}" if a.uses_teacher and a.hint else "",
        a.loss_agg_mode + (f" / {a.loss_scale_factor:g}" if a.loss_agg_mode.endswith("-norm") else ""),
        f"KL {a.kl_loss_coef:g} {a.kl_loss_type} ({a.kl_gradient} gradient)"
        if a.kl_loss_coef
        else "no KL in the loss",
        (f"KL {a.kl_coef:g} in the reward" + (f" towards {a.target_kl:g}" if a.target_kl else ""))
        if a.kl_coef
        else "",
        f"rollout_is {a.rollout_is} at {a.rollout_is_threshold:g}"
        if a.rollout_is != "none"
        else "no rollout_is",
        f"entropy bonus {a.entropy_coeff:g}" if a.entropy_coeff else "",
        f"critic: {a.critic}, γ {a.gamma:g}, λ {a.lam:g}"
        + (f" (policy: 1 - 1 / ({a.length_adaptive_alpha:g} n))" if a.adv_estimator == "vapo" else "")
        if a.critic != "none"
        else "",
        f"turns' own advantage x {a.turn_advantage_coef:g}" if a.adv_estimator in TURN_ESTIMATORS else "",
        "a sample a turn" if a.step_wise else "",
        f"1 in {a.oversample} of each group kept (RoC)" if a.oversample > 1 else "",
        "uniform groups left out" if a.drop_uniform_groups else "",
        "others sampled in their place" if a.dynamic_sampling else "",
        f"truncated: {a.truncated}" if a.truncated != "keep" else "",
        f"overlong penalty over the last {a.overlong_buffer_len} of {a.max_response_length} tokens"
        if a.max_response_length
        else "",
    ]
    return ", ".join(filter(None, parts))


def _knobs_of_rule(a: PolicyGradient) -> str:
    own = {knob: getattr(a, knob) for knob in RULE_KNOBS[a.policy_loss] if hasattr(a, knob)}
    knobs = {**rule_knobs(a.policy_loss, {}), **own, **a.rule_knobs}
    return " ".join(f"{knob} {value:g}" for knob, value in knobs.items()) or "no knobs"
