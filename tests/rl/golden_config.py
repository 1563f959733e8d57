"""What a golden file's policy-loss configuration is called in the public table."""

from __future__ import annotations

import re
import warnings
from dataclasses import fields, replace
from math import exp
from typing import Any

from rl.algorithms import ALGORITHMS, PolicyGradient, get_algorithm
from rl.conversions import converted
from rl.knobs import without_effect
from rl.losses import ROLLOUT_IS
from rl.numerics import LOG_RATIO_NET
from rl.rules import RULES

Case = dict[str, Any]

INTERVALS = ("ppo", "gspo", "gspo_token", "cispo", "importance_sampling", "reinforce")
"""What `policy_loss` says for an interval of the ratio."""
NAMES_OF_RULES = {
    **dict.fromkeys(("ppo_clip", "clip", "clipped", "grpo", "dapo", "dr_grpo", "regular", "loo"), "ppo"),
    **dict.fromkeys(("dual_clip", "ppo_dual_clip", "ppo_dual", "two_sided", "ppo_two_sided"), "ppo"),
    **dict.fromkeys(("ppo_two_sided_delta", "two_sided_clip", "ppo_kl", "ppo_entropy"), "ppo"),
    **dict.fromkeys(("decoupled", "decoupled_ppo", "ppo_decoupled", "bypass", "ppo_bypass"), "ppo"),
    **dict.fromkeys(("off_policy_sequence_mask", "ppo_off_policy_mask", "opsm"), "ppo"),
    **dict.fromkeys(("pg", "policy_gradient", "vanilla_pg", "gpg"), "reinforce"),
    **dict.fromkeys(("is", "importance_weighted", "importance_sampling_pg"), "importance_sampling"),
    **dict.fromkeys(("gspo_seq_token", "gspo_t"), "gspo_token"),
    **dict.fromkeys(("dppo", "dppo_binary_tv", "tv"), "dppo_tv"),
    **dict.fromkeys(("dppo_binary_kl", "dppo_kl_binary"), "dppo_kl"),
    **dict.fromkeys(("geo_mean", "gmpo_geo_mean"), "gmpo"),
    **dict.fromkeys(("dro", "kimi15", "kimi_k15", "kimi_k1_5", "kimi_dro"), "kimi"),
}
"""Other names; `vanilla` is left out, for it is PPO's in verl and REINFORCE's in ROLL."""
BASES = {"ppo": "grpo", "importance_sampling": "grpo", "gspo_token": "gspo"}
SPLIT = re.compile("micro|split|partition|^num_chunks$")
"""Settings of how a batch is cut, which must change nothing: every file is cut in several ways."""
DUAL = ("clip_ratio_dual", "dual_clip_c", "two_sided_delta", "delta_two_sided", "c_dual", "c", "dual_c")
DRIFT = "off_policy_mask_threshold|(off_policy|opsm|seq).*(delta|threshold|mask)|^mask_(delta|threshold)$"
RENAMED = {
    **dict.fromkeys(DUAL, "clip_ratio_c"),
    **dict.fromkeys(("eps_low", "epsilon_low", "clip_low"), "clip_ratio_low"),
    **dict.fromkeys(("eps_high", "clip_high"), "clip_ratio_high"),
    **dict.fromkeys(("cispo_cap", "ratio_cap", "cispo_upper", "upper"), "cispo_ratio_high"),
    **dict.fromkeys(("cispo_lower", "lower"), "cispo_ratio_low"),
    **dict.fromkeys(("kl_coef_loss", "kl_beta"), "kl_loss_coef"),
    **dict.fromkeys(("entropy_coefficient", "entropy_bonus"), "entropy_coeff"),
    **dict.fromkeys(("norm_constant", "horizon", "max_length", "h"), "loss_scale_factor"),
    **dict.fromkeys(("loss_aggregation", "aggregation", "agg_mode", "agg"), "loss_agg_mode"),
    **dict.fromkeys(("ratio_level", "is_level", "level"), "importance_sampling_level"),
    "eps": "clip_ratio",
}
LEVELS: dict[str, str] = dict.fromkeys(
    ("sequence_token", "sequence-token", "seq", "sequence_mean", "geometric", "gspo"), "sequence"
)
CORRECTIONS = {
    **dict.fromkeys(("token", "tis", "token_truncate"), "token_tis"),
    **dict.fromkeys(("icepop", "token_mask", "token_mis", "mis"), "token_icepop"),
    **dict.fromkeys(("sequence", "sequence_truncate", "sequence_tis"), "seq_tis"),
    **dict.fromkeys(("sequence_mask", "sequence_mis"), "seq_mis"),
    **dict.fromkeys(("geo_mask", "geometric_mask", "seq_mask_tis"), "geo_mask_token_is"),
    **dict.fromkeys(("cap", "token_cap", "decoupled", "behave_imp_weight_cap"), "decoupled"),
}
HIGH = ("C", "C_high", "rollout_is_threshold", "cap", "clip_max", "tis_clip", "imp_weight_cap")
LOW = ("C_low", "rollout_is_threshold_lower", "clip_min", "tis_clip_low")
GEO = ("geo", "geo_bounds", "geo_range", "rollout_rs_threshold")


class NotOfferedError(Exception):
    """The library has no such algorithm, or not with these knobs."""


class UnreadError(Exception):
    """A file in words that are not known here: a failure, for the library may well offer what it asks."""


def algorithm_of(config: Case, about: str = "") -> PolicyGradient:
    """The row and overrides that a golden file's policy-loss configuration names.

    `about`: the file's id, which says what an ambiguous name means (`delta`).
    """
    config = {key: value for key, value in config.items() if value is not None and not SPLIT.search(key)}
    rule = rule_name(config.pop("policy_loss"))
    about = f"{about} {rule} {config.get('rollout_is', '')}".lower()
    knobs: Case = {"rollout_is": "none", "kl_loss_coef": 0.0}
    if rule not in INTERVALS or "cispo_ratio_low" in (config := renamed(config, about)):
        raise NotOfferedError(f"{rule} with {config}")
    if rule == "cispo" and "C" in config and "rollout_is" not in config:
        config["cispo_ratio_high"] = config.pop("C")
    if rule == "importance_sampling":
        knobs["policy_loss"] = rule
    knobs |= anchor(config, about) | kl_knobs_of(config) | correction(config, about) | config
    if level := knobs.get("importance_sampling_level"):
        knobs["importance_sampling_level"] = LEVELS.get(str(level), level)
    base = BASES.get(rule, rule)
    try:
        return get_algorithm(base, **effective(base, {k: v for k, v in knobs.items() if v is not None}))
    except ValueError as error:
        raise NotOfferedError(str(error)) from error


def rule_name(given: object) -> str:
    name = str(given).lower().replace("-", "_").replace(".", "_")
    return NAMES_OF_RULES.get(name, name)


def named_rule(config: Case, about: str) -> str:
    """The rule that a config names, or else the file: loss_ppo_token_tis is ppo."""
    if config.get("policy_loss") is not None:
        return rule_name(config["policy_loss"])
    words = about.removeprefix("loss_").removeprefix("num_").split("_")
    for end in range(len(words), 0, -1):
        if (name := rule_name("_".join(words[:end]))) in (*INTERVALS, *RULES):
            return name
    return "ppo"


def renamed(config: Case, about: str) -> Case:
    """`config` under our names; where the mask of off-policy rows is meant, `delta` is its threshold."""
    given = dict(config)
    config = {RENAMED.get(key, key): value for key, value in given.items() if not re.search(DRIFT, key)}
    drift = {key: value for key, value in given.items() if re.search(DRIFT, key)}
    if drift or re.search("off_policy|opsm", about):
        switch = [value for value in drift.values() if value is False]
        numbers = [value for value in drift.values() if not isinstance(value, bool | str)]
        numbers += [config.pop(key) for key in ("delta", "threshold") if key in config and not numbers]
        if len(numbers) != 1:
            raise NotOfferedError(f"a mask of off-policy rows with {given}")
        config["off_policy_mask_threshold"] = None if switch else numbers[0]
    return config


def anchor(config: Case, about: str) -> Case:
    """To whose log-probs the ratio is: the learner's before the update, or in bypass mode the engine's."""
    engine, learner = "rollout|bypass|behav|sampler|^mu$", "recompute|^old|prox|^logp_old"
    for key in ("old_logprobs", "anchor", "ratio_anchor", "ratio", "old_logprobs_source"):
        if (said := config.pop(key, None)) is not None:
            if not re.search(f"{engine}|{learner}", str(said)):
                raise NotOfferedError(f"{key} {said!r}")
            return {"bypass_mode": re.search(engine, str(said)) is not None}
    return {"bypass_mode": True} if "bypass" in about and "bypass_mode" not in config else {}


def correction(config: Case, about: str) -> Case:
    """The knobs of rollout_is; takes them from `config`."""
    caps = [key for key in config if re.search("beha?v.*(cap|threshold)", key)]
    high, low, geo = (taken(config, names) for names in ((*caps, *HIGH), LOW, GEO))
    decoupled = bool(caps) | ("decoupled" in about) | bool(taken(config, ("use_decoupled_loss", "decoupled")))
    mode = config.pop("rollout_is", "decoupled" if decoupled else "none") or "none"
    if isinstance(high, str):  # verl's "0.5_5.0"
        low, high = (float(end) for end in high.split("_"))
        mode = {"token": "token_icepop", "sequence": "seq_mis"}.get(mode, mode)
    mode = CORRECTIONS.get(mode, mode)
    if mode == "decoupled":  # AReaL: w · 1[w <= cap], nothing below is dropped
        high = exp(LOG_RATIO_NET) if high is None else high
        return {"rollout_is": "token_icepop", **thresholds("token_icepop", high, 0.0, None)}
    return {} if mode == "none" else {"rollout_is": mode, **thresholds(mode, high, low, geo)}


def taken(config: Case, names: tuple[str, ...]) -> Any:
    """What `config` has under one of `names`; none of them stays in it."""
    found = [config.pop(name) for name in names if name in config]
    return found[0] if found else None


def thresholds(mode: str, high: float | None, low: float | None, geo: tuple[float, float] | None) -> Case:
    if mode not in ROLLOUT_IS:
        raise NotOfferedError(f"rollout_is {mode!r}")
    if mode == "geo_mask_token_is" and geo is not None:
        low, high = geo
    is_mask = ROLLOUT_IS[mode].action == "mask"
    return {"rollout_is_threshold": high, "rollout_is_threshold_lower": low if is_mask else None}


def kl_knobs_of(config: Case) -> Case:
    """The knobs of the KL in the loss; takes them from `config`."""
    coef = taken(config, ("kl_loss_coef", "kl_coef", "beta")) or 0.0
    kind, on = (
        taken(config, ("kl_loss_type", "kl_estimator", "kl_type", "kl")),
        config.pop("use_kl_loss", True),
    )
    gradient = config.pop("kl_gradient", None)
    names = ("importance_weighted", "use_bias_correction_kl", "unbiased_gradient", "use_unbiased_kl")
    weighted = taken(config, (*names, "unbiased_kl", "kl_importance_weighted"))
    if not coef or not on:
        return {"kl_loss_coef": 0.0}
    knobs = kl_knobs(str(kind or "k3"))
    if weighted is not None:
        knobs["kl_gradient"] = "unbiased" if weighted else "naive"
    elif str(kind).endswith("+"):
        raise NotOfferedError(f"{kind} off policy without an importance weight")
    return {"kl_loss_coef": coef, **knobs, **({"kl_gradient": gradient} if gradient else {})}


def kl_knobs(name: str) -> Case:
    """verl's spelling: k3+ has the unbiased gradient, k3 its own."""
    bare = name.removesuffix("+")
    return {
        "kl_loss_type": {"low_var_kl": "k3", "kl": "k1", "mse": "k2"}.get(bare, bare),
        "kl_gradient": "unbiased" if name.endswith("+") else "naive",
    }


def effective(base: str, knobs: Case) -> Case:
    """`knobs` under our names, without those that the library declares to be without effect in the row."""
    knobs, _ = converted({"algorithm": base, **knobs})
    del knobs["algorithm"]
    known = {field.name for field in fields(PolicyGradient)} - {"name"}
    say_unread({knob: value for knob, value in knobs.items() if knob not in known})
    knobs = {knob: value for knob, value in knobs.items() if knob in known}
    idle = {knob for knob, _ in without_effect(replace(ALGORITHMS[base], **knobs))}
    return {knob: value for knob, value in knobs.items() if knob not in idle}


def say_unread(settings: Case) -> None:
    """Settings that nothing here reads: if they do change something, the numbers will not agree."""
    for name, value in settings.items():
        warnings.warn(f"setting {name} = {value!r} is not read", stacklevel=3)
