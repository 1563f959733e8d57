"""Other libraries' names of knobs, converted to ours; ambiguous ones are refused with what to give instead.

verl's names are ours. Sources: TRL 1.16 (GRPOConfig), OpenRLHF 0.11 (algo.*), AReaL 1.0 (cli_args.py), slime,
NeMo-RL and open-instruct, as read in their own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Knobs = dict[str, Any]
Convert = Callable[[Any, Mapping[str, Any]], Knobs]


@dataclass(frozen=True, slots=True)
class Alias:
    """One foreign name: whose it is, and what it is here. `convert` sees all that is given beside it."""

    libraries: str
    convert: Convert


def renamed(name: str) -> Convert:
    return lambda value, _: {name: number(value)}


def chosen(values: Mapping[str, Knobs | str]) -> Convert:
    """By value: the knobs that it stands for, or the reason why it is refused."""

    def convert(value: Any, _: Mapping[str, Any]) -> Knobs:
        found = values.get(str(value).lower())
        if found is None:
            raise ValueError(f"{value!r}: expected one of {', '.join(values)}")
        if isinstance(found, str):
            raise ValueError(f"{value!r}: {found}")
        return found

    return convert


def number(value: Any) -> Any:
    """A number that came as text; whatever else stays."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def both_clips(value: Any, given: Mapping[str, Any]) -> Knobs:
    """One epsilon is the band's two ends, unless the upper one has its own."""
    has_upper = given.keys() & {"epsilon_high", "eps_clip_higher", "eps_clip_high", "clip_ratio_high"}
    low = {"clip_ratio_low": number(value)}
    return low if has_upper else {**low, "clip_ratio_high": number(value)}


def upper_clip(value: Any, given: Mapping[str, Any]) -> Knobs:
    if "cispo" in (given.get("algorithm"), given.get("policy_loss"), given.get("loss_type")):
        raise ValueError(
            f"{value!r} with CISPO is ambiguous: TRL's epsilon_high is the cap of the ratio, verl, slime and "
            "NeMo-RL clip at 1 + epsilon. Give cispo_ratio_high, the absolute cap (5 here is TRL's 5.0)"
        )
    return {"clip_ratio_high": number(value)}


def two_clips(value: Any, _: Mapping[str, Any]) -> Knobs:
    ends = value.replace(",", " ").split() if isinstance(value, str) else list(value)
    if len(ends) != 2:
        raise ValueError(f"{value!r}: expected two numbers, the lower and the upper epsilon")
    return {"clip_ratio_low": number(ends[0]), "clip_ratio_high": number(ends[1])}


def switched(name: str) -> Convert:
    """A switch beside a coefficient: off is 0, on changes nothing, for the coefficient says how much."""

    def convert(value: Any, given: Mapping[str, Any]) -> Knobs:
        if str(value).lower() in ("false", "0"):
            return {name: 0.0}
        if not given.get(name):
            raise ValueError(f"{value!r}: give {name}, how much it weighs; above 0 it is on")
        return {}

    return convert


UNBIASED = chosen({"true": {"kl_gradient": "unbiased"}, "false": {"kl_gradient": "naive"}})
DUAL_CLIP = renamed("clip_ratio_c")  # TRL's two-sided delta is the same function for delta > 1 + epsilon_high
KL_ESTIMATOR = chosen(
    {
        **{name: {"kl_loss_type": name} for name in ("k1", "k2", "k3")},
        # verl's and slime's name; with a plus, verl's straight-through form, whose gradient is unbiased.
        "low_var_kl": {"kl_loss_type": "k3"},
        **{f"{name}+": {"kl_loss_type": name, "kl_gradient": "unbiased"} for name in ("k1", "k2", "k3")},
        "kl": {"kl_loss_type": "k1"},
        **{
            str(index): "integer estimators mean different things (open-instruct's 2 is k3, its 3 is r k1); "
            "give kl_loss_type k1, k2 or k3"
            for index in range(4)
        },
    }
)
SCALES = {"group": "grpo", "true": "grpo", "batch": "lite_ppo", "none": "dr_grpo", "false": "dr_grpo"}
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum")

ALIASES: dict[str, Alias] = {
    "epsilon": Alias("TRL", both_clips),
    "eps_clip": Alias("OpenRLHF, AReaL, slime", both_clips),
    "clip_ratio": Alias("verl", both_clips),
    "epsilon_high": Alias("TRL", upper_clip),
    "eps_clip_higher": Alias("AReaL", upper_clip),
    "eps_clip_high": Alias("slime", upper_clip),
    "eps_clip_low_high": Alias("OpenRLHF", two_clips),
    "delta": Alias("TRL", DUAL_CLIP),
    "dual_clip": Alias("OpenRLHF", DUAL_CLIP),
    "c_clip": Alias("AReaL", DUAL_CLIP),
    "eps_clip_c": Alias("slime", DUAL_CLIP),
    "ratio_clip_c": Alias("NeMo-RL", DUAL_CLIP),
    "scale_rewards": Alias("TRL", chosen({name: {"adv_estimator": to} for name, to in SCALES.items()})),
    "norm_adv_by_std_in_grpo": Alias(
        "verl", chosen({name: {"adv_estimator": SCALES[name]} for name in ("true", "false")})
    ),
    "policy_loss_type": Alias(
        "OpenRLHF", chosen({"ppo": {"policy_loss": "ppo"}, "gspo": {"importance_sampling_level": "sequence"}})
    ),
    "loss_type": Alias(
        "TRL",
        chosen(
            {
                "grpo": {"loss_agg_mode": "seq-mean-token-mean"},
                "dapo": {"loss_agg_mode": "token-mean"},
                "dr_grpo": {"loss_agg_mode": "seq-mean-token-sum-norm"},
                "cispo": {"policy_loss": "cispo"},
                "sapo": {"policy_loss": "sapo"},
                "bnpo": "a mean of micro-batches' means, which depends on how a batch is split; give "
                "loss_agg_mode token-mean, the mean over the whole update",
            }
        ),
    ),
    "loss_agg": Alias("OpenRLHF", chosen({name: {"loss_agg_mode": name} for name in AGGREGATIONS})),
    "loss_reduction": Alias(
        "SkyRL",
        chosen(
            {
                "token_mean": {"loss_agg_mode": "token-mean"},
                "sequence_mean": {"loss_agg_mode": "seq-mean-token-mean"},
            }
        ),
    ),
    "max_completion_length": Alias("TRL", renamed("loss_scale_factor")),
    "beta": Alias("TRL", renamed("kl_loss_coef")),
    "init_kl_coef": Alias("OpenRLHF", renamed("kl_coef")),
    "kl_ctl": Alias("AReaL", renamed("kl_coef")),
    "use_kl_loss": Alias("verl", switched("kl_loss_coef")),
    "use_kl_in_reward": Alias("verl", switched("kl_coef")),
    "kl_estimator": Alias("OpenRLHF, open-instruct", KL_ESTIMATOR),
    "use_bias_correction_kl": Alias("TRL", UNBIASED),
    "unbiased_gradient": Alias("OpenRLHF", UNBIASED),
    "use_unbiased_kl": Alias("slime", UNBIASED),
    "vllm_importance_sampling_mode": Alias(
        "TRL",
        chosen(
            {
                "token_truncate": {"rollout_is": "token_tis"},
                "token_mask": {"rollout_is": "token_icepop"},
                "sequence_truncate": {"rollout_is": "seq_tis"},
                "sequence_mask": {"rollout_is": "seq_mis"},
            }
        ),
    ),
    "vllm_importance_sampling_clip_max": Alias("TRL", renamed("rollout_is_threshold")),
    "tis_clip": Alias(
        "slime", lambda value, _: {"rollout_is": "token_tis", "rollout_is_threshold": number(value)}
    ),
    "entropy_coef": Alias("TRL, OpenRLHF", renamed("entropy_coeff")),
}
"""Every foreign name, as it is spelled in Python; on the command line with dashes."""


def converted(given: Mapping[str, Any]) -> tuple[Knobs, list[str]]:
    """`given` with our names alone, and a line for each conversion.

    Raises:
        ValueError: an ambiguous name or value, with what to give instead; a knob that is given twice.
    """
    knobs = {name: value for name, value in given.items() if name not in ALIASES}
    notes: list[str] = []
    for name in given.keys() & ALIASES.keys():
        alias, value = ALIASES[name], given[name]
        try:
            meant = alias.convert(value, given)
        except ValueError as error:
            raise ValueError(f"{name} ({alias.libraries}) = {error}") from error
        twice = sorted(knob for knob in meant if knob in knobs and knobs[knob] != meant[knob])
        if twice:
            raise ValueError(f"{name} ({alias.libraries}) sets {twice[0]}, which is given too; leave one out")
        knobs |= meant
        here = " and ".join(f"{knob} {one}" for knob, one in meant.items()) or "what is given beside it"
        notes.append(f"{name} {value} ({alias.libraries}) is {here}")
    return knobs, sorted(notes)


def converted_options(arguments: Sequence[str], known: frozenset[str]) -> tuple[list[str], list[str]]:
    """A command line with foreign options replaced, and a line for each; those in `known` are left alone."""
    rest: list[str] = []
    foreign: dict[str, str] = {}
    beside: dict[str, str] = {}
    place = 0
    while place < len(arguments):
        option, joined, value = arguments[place].partition("=")
        end = place + 1
        while not joined and end < len(arguments) and not arguments[end].startswith("--"):
            end += 1
        values = [value] if joined else list(arguments[place + 1 : end])
        name = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and name in ALIASES and name not in known:
            foreign[name] = " ".join(values)
        else:
            rest += arguments[place:end]
            beside[name] = " ".join(values)
        place = end
    knobs, notes = converted({name: one for name, one in beside.items() if name not in ALIASES} | foreign)
    added = [
        part
        for knob, one in knobs.items()
        if knob not in beside
        for part in (f"--{knob.replace('_', '-')}", str(one))
    ]
    return [*rest, *added], notes if foreign else []
