"""What is given under other libraries' names, in ours: to `get_algorithm`, or on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from envs.names import nearest
from rl.alias_converters import Beside, Knobs, two_ended_threshold
from rl.aliases import ALIASES, VALUES, Alias

SECTIONS = ("algo.advantage.", "algo.", "actor.", "critic.")
"""Where OpenRLHF and AReaL keep these names: --algo.kl.init_coef is kl_init_coef."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """One conversion that was made: `spelled` and `value` as they were given, `knobs` as they are here."""

    spelled: str
    value: Any
    library: str
    knobs: Knobs

    def __str__(self) -> str:
        here = " and ".join(f"{knob} {value}" for knob, value in self.knobs.items())
        shown = f"{self.spelled} {self.value}".strip()
        return f"{shown} ({self.library}) is {here or 'what is in force with what is given beside it'}"


def python_name(spelled: str) -> str:
    """The name in ALIASES that is meant: --algo.kl.init_coef and kl_init_coef are one."""
    inner = (spelled.removeprefix(section) for section in SECTIONS if spelled.startswith(section))
    names = (name.replace("-", "_").replace(".", "_") for name in (*inner, spelled))
    return next((name for name in names if name in ALIASES), spelled.replace("-", "_"))


def alias_of(name: str, value: Any) -> Alias | None:
    """The row that converts it; None for a name and value of ours."""
    if name == "rollout_is_threshold" and "_" in str(value):
        return Alias("verl", "verl/trainer/config/algorithm.py", two_ended_threshold)
    return ALIASES.get(name) or VALUES.get(name, {}).get(str(value).lower())


def converted(
    given: Mapping[str, Any], in_force: Mapping[str, Any] | None = None
) -> tuple[Knobs, list[Conversion]]:
    """`given` under our names alone, and the conversions that it took.

    `in_force` are the knobs that hold where nothing is given: an algorithm's row and a recipe's defaults.

    Raises:
        ValueError: an ambiguous name or value, with what to give instead; a knob that is set twice.
    """
    by_name = {python_name(spelled): value for spelled, value in given.items()}
    beside = Beside(by_name, in_force or {})
    knobs: Knobs = {}
    set_by: dict[str, str] = {}
    conversions: list[Conversion] = []
    for spelled, value in given.items():
        name = python_name(spelled)
        alias = alias_of(name, value)
        meant: Knobs = {spelled: value}
        if alias is not None:
            try:
                meant = alias.convert(value, beside)
            except ValueError as error:
                raise ValueError(f"{spelled} ({alias.library}) = {error}") from error
            conversions.append(Conversion(spelled, value, alias.library, meant))
        for knob, one in meant.items():
            before = knobs.get(knob)
            if isinstance(before, dict) and isinstance(one, dict):
                one = {**before, **one}  # several knobs of one rule
            elif before is not None and str(before) != str(one):
                raise ValueError(
                    f"{spelled} sets {knob} to {one}, and {set_by[knob]} to {before}: leave one out"
                )
            knobs[knob], set_by[knob] = one, spelled
    return knobs, conversions


def converted_options(
    arguments: Sequence[str], known: Set[str], in_force: Mapping[str, Any]
) -> tuple[list[str], list[Conversion]]:
    """`arguments` with foreign options and values replaced, and the conversions that it took.

    `known` are the recipe's own fields, which are left alone; `in_force` as in `converted`.

    Raises:
        ValueError: as `converted` does, and for an option that is nearest to a foreign one.
    """
    parts = options(arguments)
    for name in (field_name(spelled) for spelled, _, _ in parts):
        near = nearest(name, [*known, *ALIASES])
        if near in ALIASES and near not in known and python_name(name) not in ALIASES:
            wrong, right = (f"--{word.replace('_', '-')}" for word in (name, near))
            raise ValueError(f"unknown option {wrong}; did you mean {right}, {ALIASES[near].library}'s?")
    own = {name for name in known if name in ALIASES}
    given = {spelled: " ".join(values) for spelled, values, _ in parts if field_name(spelled) not in own}
    _, conversions = converted({field_name(s): v for s, v in given.items() if s.startswith("--")}, in_force)
    replaced = {conversion.spelled for conversion in conversions}
    rest = [word for spelled, _, words in parts if field_name(spelled) not in replaced for word in words]
    knobs: Knobs = {}
    for conversion in conversions:
        for knob, value in conversion.knobs.items():
            knobs[knob] = {**knobs.get(knob, {}), **value} if knob == "rule_knobs" else value
    return [*rest, *(word for knob, value in knobs.items() for word in option(knob, value))], conversions


def options(arguments: Sequence[str]) -> list[tuple[str, list[str], list[str]]]:
    """Each option as (its name with dashes, its values, all its words); what stands before the first: ""."""
    parts: list[tuple[str, list[str], list[str]]] = []
    for word in arguments:
        if word.startswith("--"):
            spelled, joined, value = word.partition("=")
            parts.append((spelled, [value] if joined else [], [word]))
        elif parts:
            parts[-1][1].append(word)
            parts[-1][2].append(word)
        else:
            parts.append(("", [word], [word]))
    return parts


def option_value(arguments: Sequence[str], name: str) -> str | None:
    """What the last option of this name is given."""
    return next(
        (" ".join(v) for spelled, v, _ in reversed(options(arguments)) if field_name(spelled) == name), None
    )


def field_name(spelled: str) -> str:
    """--clip-ratio-low is the field clip_ratio_low; --algo.kl.init_coef stays algo.kl.init_coef."""
    return spelled.removeprefix("--").replace("-", "_")


def option(knob: str, value: Any) -> list[str]:
    """A knob as the words of its option."""
    values = (
        [str(part) for pair in value.items() for part in pair] if isinstance(value, Mapping) else [str(value)]
    )
    return [f"--{knob.replace('_', '-')}", *values]
