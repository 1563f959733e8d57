"""What a golden file's configuration is called in the public table."""

from __future__ import annotations

from typing import Any

from rl.algorithms import ALGORITHMS, PolicyGradient, get_algorithm
from rl.losses import ROLLOUT_IS

Case = dict[str, Any]


INTERVALS = ("ppo", "gspo", "gspo_token", "cispo", "importance_sampling", "reinforce")
"""What `policy_loss` says for an interval of the ratio."""


class NotOfferedError(Exception):
    """The library has no such algorithm, or not with these knobs."""


def algorithm_of(config: Case) -> PolicyGradient:
    """The row and overrides that a golden file's policy-loss configuration names."""
    config = dict(config)
    rule = config.pop("policy_loss")
    for split in ("micro_batches", "num_micro_batches", "micro_batch_size", "splits"):
        config.pop(split, None)  # every file is split in several ways
    base = {"ppo": "grpo", "importance_sampling": "grpo", "gspo_token": "gspo"}.get(rule, rule)
    if base not in ALGORITHMS or config.pop("cispo_ratio_low", None) is not None:
        raise NotOfferedError(rule)
    caps = config.pop("C", None), config.pop("C_low", None)
    geo = config.pop("geo", None)
    knobs: Case = {"rollout_is": "none", "kl_loss_coef": 0.0, **config}
    if rule == "importance_sampling":
        knobs["policy_loss"] = rule
    if knobs.get("loss_agg_mode") != "seq-mean-token-sum-norm":
        knobs.pop("loss_scale_factor", None)
    if knobs["rollout_is"] != "none":
        knobs |= thresholds(knobs["rollout_is"], *caps, geo)
    if knobs["kl_loss_coef"]:
        knobs |= kl_knobs(knobs["kl_loss_type"])
    try:
        return get_algorithm(base, **knobs)
    except ValueError as error:
        raise NotOfferedError(str(error)) from error


def thresholds(mode: str, high: float, low: float | None, geo: tuple[float, float] | None) -> Case:
    if mode not in ROLLOUT_IS:
        raise NotOfferedError(mode)
    if mode == "geo_mask_token_is":
        assert geo is not None
        low, high = geo
    is_mask = ROLLOUT_IS[mode].action == "mask"
    return {"rollout_is_threshold": high, "rollout_is_threshold_lower": low if is_mask else None}


def kl_knobs(name: str) -> Case:
    """verl's spelling: k3+ has the unbiased gradient, k3 its own."""
    return {
        "kl_loss_type": name.removesuffix("+"),
        "kl_gradient": "unbiased" if name.endswith("+") else "naive",
    }
