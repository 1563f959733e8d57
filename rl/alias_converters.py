"""How one library's setting becomes ours: functions from a value, and what is given with it, to knobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Knobs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Beside:
    """What a setting stands beside: all that is `given`, by name, and the knobs `in_force` without it."""

    given: Mapping[str, Any]
    in_force: Mapping[str, Any]

    def value(self, *names: str) -> Any:
        """Of the names that are given the first one's value; else what is in force under any of them."""
        known = (source[name] for source in (self.given, self.in_force) for name in names if name in source)
        return next(known, None)


Convert = Callable[[Any, Beside], Knobs]
"""(value, what it stands beside) -> our knobs, none where nothing changes; ValueError with what to give."""


def number(value: Any) -> Any:
    """A number, which on the command line is a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{value!r}: expected a number") from None


def truth(value: Any) -> bool:
    """A switch. A flag without a value is on."""
    found = {"": True, "true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if found is None:
        raise ValueError(f"{value!r}: expected true or false")
    return found


def renamed(*names: str) -> Convert:
    """A number that these knobs take as it is."""
    return lambda value, _: dict.fromkeys(names, number(value))


def chosen(values: Mapping[str, Knobs | str]) -> Convert:
    """By value: the knobs that it stands for, or why it is refused."""

    def convert(value: Any, _: Beside) -> Knobs:
        found = values.get(str(value).lower())
        if found is None:
            raise ValueError(f"{value!r}: expected one of {', '.join(values)}")
        if isinstance(found, str):
            raise ValueError(f"{value!r}: {found}")
        return found

    return convert


def switched(on: Knobs, off: Knobs) -> Convert:
    """A switch between two settings."""
    return lambda value, _: on if truth(value) else off


def refused(why: str) -> Convert:
    """A name that means several things here."""

    def convert(value: Any, _: Beside) -> Knobs:
        raise ValueError(f"{value!r}: {why}")

    return convert


def rule_knob(name: str) -> Convert:
    """A knob of a rule (rl/rules.py)."""
    return lambda value, _: {"rule_knobs": {name: number(value)}}


UPPER_CLIPS = ("epsilon_high", "eps_clip_higher", "eps_clip_high", "clip_higher", "ratio_clip_max")


def both_clips(value: Any, beside: Beside) -> Knobs:
    """One epsilon is the band's two ends, unless the upper one has its own."""
    has_upper = beside.given.keys() & {*UPPER_CLIPS, "clip_ratio_high"}
    return renamed("clip_ratio_low", *(() if has_upper else ("clip_ratio_high",)))(value, beside)


def upper_clip(value: Any, beside: Beside) -> Knobs:
    """The band's upper end, in all rules but CISPO's, of which libraries disagree on what it bounds."""
    if "cispo" in (beside.value("policy_loss"), beside.value("loss_type"), beside.value("loss_mode")):
        raise ValueError(
            f"{value!r} with CISPO is ambiguous: TRL's epsilon_high is the cap of the ratio itself, verl, "
            "slime and NeMo-RL clip at 1 + epsilon. Give cispo_ratio_high, the absolute cap: "
            f"{number(value):g} as TRL means it, {1 + number(value):g} as the others do"
        )
    return {"clip_ratio_high": number(value)}


def two_clips(value: Any, _: Beside) -> Knobs:
    """Both ends in one setting."""
    ends = value.replace(",", " ").split() if isinstance(value, str) else list(value)
    if len(ends) != 2:
        raise ValueError(f"{value!r}: expected two numbers, the lower and the upper epsilon")
    return {"clip_ratio_low": number(ends[0]), "clip_ratio_high": number(ends[1])}


def two_sided_delta(value: Any, beside: Beside) -> Knobs:
    """min(r, δ) inside PPO's minimum: for δ > 1 + ε_high the same function as a dual clip at δ."""
    cap = number(value)
    upper = number(beside.value("epsilon_high", "epsilon", "clip_ratio_high") or 0.0)
    if not cap > 1 + upper:
        raise ValueError(
            f"{cap:g} is not above 1 + epsilon_high = {1 + upper:g}: it would bound the ratio where A > 0, "
            "too, and be no dual clip. Give clip_ratio_high for that side and clip_ratio_c for A < 0"
        )
    return {"clip_ratio_c": cap}


def reward_scale(value: Any, beside: Beside) -> Knobs:
    """What R - mean of the group is divided by: its std, the batch's, or nothing."""
    names = {"group": "grpo", "true": "grpo", "batch": "lite_ppo", "none": "dr_grpo", "false": "dr_grpo"}
    estimator = beside.value("adv_estimator")
    if estimator is not None and estimator not in names.values():
        raise ValueError(
            f"{value!r}: adv_estimator {estimator!r} is not R - mean of the group over a std; give "
            f"adv_estimator {', '.join(sorted({*names.values()}))} for one that is, or leave this out"
        )
    return chosen({name: {"adv_estimator": meant} for name, meant in names.items()})(value, beside)


def kl_place(value: Any, beside: Beside) -> Knobs:
    """A coefficient whose switch, use_loss, says whether the KL is in the loss or in the reward."""
    in_loss = truth(beside.given.get("kl_use_loss", beside.given.get("use_kl_loss", False)))
    return {"kl_loss_coef" if in_loss else "kl_coef": number(value)}


def beta(value: Any, beside: Beside) -> Knobs:
    """TRL's GRPO has its KL in the loss, its RLOO (rloo_trainer.py) in the reward."""
    return {"kl_coef" if beside.value("adv_estimator") == "rloo" else "kl_loss_coef": number(value)}


def coefficient_switch(knob: str, *others: str) -> Convert:
    """A switch beside a coefficient: off is 0, on changes nothing, for the coefficient says how much."""

    def convert(value: Any, beside: Beside) -> Knobs:
        if not truth(value):
            return {knob: 0.0}
        if not number(beside.value(knob, *others) or 0.0):
            raise ValueError(f"{value!r}: give {knob}, how much it weighs; above 0 it is on")
        return {}

    return convert


def loss_type(values: Mapping[str, Knobs | str]) -> Convert:
    """TRL's loss_type; dr_grpo divides by max_completion_length, which is loss_scale_factor here."""

    def convert(value: Any, beside: Beside) -> Knobs:
        meant = chosen(values)(value, beside)
        if str(value) == "dr_grpo" and "max_completion_length" in beside.given:
            meant = {**meant, "loss_scale_factor": number(beside.given["max_completion_length"])}
        return meant

    return convert


def completion_length(value: Any, beside: Beside) -> Knobs:
    """Beside loss_type dr_grpo its divisor; else a limit of sampling, which has other names here."""
    if beside.given.get("loss_type") == "dr_grpo":
        return {}
    raise ValueError(
        f"{value!r} is two things in TRL: give max_turn_tokens and max_total_tokens for the longest "
        "completion, loss_scale_factor for what dr_grpo divides by"
    )


def masked_weights(rollout_is: str, *lower_names: str) -> Convert:
    """A mask without a lower end unless one is given; ours has 1 / rollout_is_threshold by default (verl)."""

    def convert(_: Any, beside: Beside) -> Knobs:
        has_lower = beside.given.keys() & {*lower_names, "rollout_is_threshold_lower"}
        return {"rollout_is": rollout_is, **({} if has_lower else {"rollout_is_threshold_lower": 0.0})}

    return convert


def by_value(values: Mapping[str, Convert]) -> Convert:
    """By value: how it is converted."""

    def convert(value: Any, beside: Beside) -> Knobs:
        if str(value).lower() not in values:
            raise ValueError(f"{value!r}: expected one of {', '.join(values)}")
        return values[str(value).lower()](value, beside)

    return convert


def openrlhf_correction(value: Any, beside: Beside) -> Knobs:
    """is_correction_level with its mode and threshold; the interval is [0.5, 5] unless it is given."""
    level, mode = str(value).lower(), str(beside.given.get("is_correction_mode", ""))
    if level == "off":
        return {"rollout_is": "none"}
    kind = {
        ("token", "mask"): "token_icepop",
        ("token", "clip"): "token_tis",
        ("seq", "mask"): "geo_mask_token_is",  # gated by the row's geometric mean
        ("geo", "mask"): "geo_mask_token_is",
    }.get((level, mode))
    if kind is None:
        raise ValueError(
            f"{value!r} with is_correction_mode {mode!r}: expected off, or token, seq or geo with mask, or "
            "token with clip; rollout_is says the same in one name"
        )
    ends = str(beside.given.get("is_correction_threshold", "0.5 5")).strip("[]()").replace(",", " ").split()
    low, high = (number(end) for end in ([0.0, *ends] if len(ends) == 1 else ends))
    if mode == "mask":
        return {"rollout_is": kind, "rollout_is_threshold": high, "rollout_is_threshold_lower": low}
    if low:
        raise ValueError(
            f"{value!r} with clip at [{low:g}, {high:g}]: weights are cut from above alone here; give "
            f"is_correction_threshold {high:g}, or is_correction_mode mask"
        )
    return {"rollout_is": kind, "rollout_is_threshold": high}


def part_of(name: str) -> Convert:
    """A setting that another one, `name`, reads."""

    def convert(value: Any, beside: Beside) -> Knobs:
        if name not in beside.given:
            raise ValueError(f"{value!r} is part of {name}: give that, too")
        return {}

    return convert


def verl_level(value: Any, beside: Beside) -> Knobs:
    """verl's rollout_is, a level; whether weights are cut or masked is in its threshold."""
    if "_" in str(beside.given.get("rollout_is_threshold", "")):
        return {}
    return {"rollout_is": {"token": "token_tis", "sequence": "seq_tis", "null": "none"}[str(value).lower()]}


def two_ended_threshold(value: Any, beside: Beside) -> Knobs:
    """verl's "0.5_5.0": weights outside are masked; a single number is a cap."""
    low, _, high = str(value).partition("_")
    masks = {
        "token": "token_icepop",
        "token_tis": "token_icepop",
        "sequence": "seq_mis",
        "seq_tis": "seq_mis",
    }
    kind = masks.get(str(beside.value("rollout_is")), beside.value("rollout_is"))
    return {
        "rollout_is": kind,
        "rollout_is_threshold": number(high),
        "rollout_is_threshold_lower": number(low),
    }


def tis_cap(value: Any, _: Beside) -> Knobs:
    """slime's correction has the one form."""
    return {"rollout_is": "token_tis", "rollout_is_threshold": number(value)}


def tis_floor(value: Any, _: Beside) -> Knobs:
    """slime raises smaller weights to tis_clip_low, 0 by default."""
    if number(value) > 0:
        raise ValueError(
            f"{value!r}: slime raises smaller weights to it, here they are cut from above alone; give "
            "rollout_is token_icepop with rollout_is_threshold_lower to mask them, or leave it out"
        )
    return {}
