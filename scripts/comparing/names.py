"""What the command line names: arms, settings and tuned fields, each checked before anything starts."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from envs.names import unknown_name
from envs.registry import resolve_env
from rl.algorithms import base_row, knobs_of
from rl.config import Config
from rl.conversions import converted_options, field_name, options
from rl.overrides import Overrides

RESERVED = ("algorithm", "env", "level", "seed", "run_dir", "budget_tokens")
"""Fields that the comparison itself sets in every cell."""


class CompareError(ValueError):
    """The comparison cannot be made as asked; the message says what to do."""


Changes = tuple[tuple[str, str], ...]
"""Fields of a Config with their values as on a command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of what is compared: an algorithm with what is changed in it, under a label."""

    label: str
    algorithm: str
    changes: Changes = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An environment at a level, with what its runs need besides: where arms are compared."""

    label: str
    env: str
    level: int
    changes: Changes = ()


def recipe_config(recipe: str) -> Config:
    """The CONFIG of recipes/NAME.py."""
    from pathlib import Path

    import recipes

    names = sorted(path.stem for folder in recipes.__path__ for path in Path(folder).glob("*.py"))
    if recipe not in names:
        raise CompareError(unknown_name("recipe", recipe, [name for name in names if name != "__init__"]))
    config = getattr(importlib.import_module(f"recipes.{recipe}"), "CONFIG", None)
    if not isinstance(config, Config):
        raise CompareError(f"recipes/{recipe}.py has no CONFIG; name a recipe that has one, as calc_grpo")
    return config


def parse_arms(text: str, config: Config) -> tuple[Arm, ...]:
    """`grpo,again=grpo,frozen=grpo+learning_rate=0,my_algorithm.py:ROW`: what is compared.

    An arm is an algorithm, perhaps LABEL= before it and +FIELD=VALUE after it.
    """
    return _distinct(tuple(_parse_arm(part, config) for part in _parts(text, "--algorithms")), "--algorithms")


def _parse_arm(text: str, config: Config) -> Arm:
    head, *changes = text.split("+")
    label, _, algorithm = head.rpartition("=")
    try:
        base_row(algorithm)
    except ValueError as error:
        raise CompareError(f"--algorithms {text}: {error}") from error
    return Arm(
        label=label or algorithm.rpartition("/")[2],
        algorithm=algorithm,
        changes=parse_changes(changes, config, f"--algorithms {text}"),
    )


def parse_settings(texts: Sequence[str], config: Config) -> tuple[Setting, ...]:
    """`calc:2` or `my_env.py:ENV:1+max_turns=12`: an environment with its level."""
    if not texts:
        raise CompareError("no --env: give at least one environment with its level, as --env calc:2")
    return _distinct(tuple(_parse_setting(text, config) for text in texts), "--env")


def _parse_setting(text: str, config: Config) -> Setting:
    head, *changes = text.split("+")
    env, _, level = head.rpartition(":")
    if not env or not level.isdecimal():
        raise CompareError(f"--env {text}: expected NAME:LEVEL, as calc:2 or my_env.py:ENV:0")
    try:
        resolve_env(env).require_level(int(level))
    except ValueError as error:
        raise CompareError(f"--env {text}: {error}") from error
    return Setting(
        label=head.rpartition("/")[2],
        env=env,
        level=int(level),
        changes=parse_changes(changes, config, f"--env {text}"),
    )


def parse_changes(texts: Sequence[str], config: Config, where: str) -> Changes:
    """FIELD=VALUE of each text."""
    return tuple(_parse_change(text, config, where) for text in texts)


def _parse_change(text: str, config: Config, where: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    field = field.replace("-", "_")
    known = [known.name for known in fields(config) if known.name not in RESERVED]
    if field in RESERVED:
        raise CompareError(f"{where}: {field} is set by the comparison itself; leave it out")
    if field not in known:
        raise CompareError(f"{where}: {unknown_name('setting', field, known)}")
    if not equals or not value:
        raise CompareError(f"{where}: {text!r} changes nothing; expected {field}=VALUE")
    return field, value


def parse_tuning(
    texts: Sequence[str],
    arms: Sequence[Arm],
    config: Config,
    *,
    settings: Sequence[Setting] = (),
    shared: Sequence[str] = (),
) -> tuple[Changes, ...]:
    """Every combination of `learning_rate=1e-4,3e-4` and further fields: the trials of each arm.

    CompareError where an arm, a setting or a shared option gives a value to a tuned field as well.
    """
    grids = []
    for text in texts:
        field, values = _parse_change(text, config, f"--tune {text}")
        choices = _parts(values, f"--tune {field}")
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise CompareError(f"--tune {text}: expected two values or more, each once")
        fixed = [arm.label for arm in arms if field in dict(arm.changes)]
        if fixed:
            raise CompareError(
                f"--tune {text}: {', '.join(fixed)} fixes {field} itself, so arms would not get the same "
                "number of trials; leave out one of the two"
            )
        others = [setting.label for setting in settings if field in dict(setting.changes)]
        others += ["what follows --"] if field in given_fields(shared, config) else []
        if others:
            raise CompareError(
                f"--tune {text}: {', '.join(others)} gives {field} a value too, which no run would have; "
                "leave out one of the two"
            )
        grids.append([(field, value) for value in choices])
    if len({grid[0][0] for grid in grids}) < len(grids):
        raise CompareError("--tune names a field twice; give all of its values at once")
    return tuple(product(*grids)) if grids else ()


def as_options(changes: Changes, config: Config) -> list[str]:
    """`changes` as a recipe's command line has them."""
    words = []
    for field, value in changes:
        option = field.replace("_", "-")
        if isinstance(getattr(config, field), bool):
            if value not in ("True", "False"):
                raise CompareError(f"{field}={value}: expected True or False")
            words += [f"--{option}" if value == "True" else f"--no-{option}"]
        else:
            words += [f"--{option}", value]
    return words


def row_options(config: Config, shared: Sequence[str]) -> list[str]:
    """Options that undo what the recipe changes in its algorithm's row, unless the shared options set it.

    A recipe suits its own algorithm; other rows would no longer be what their papers say.
    """
    given = {option.partition("=")[0].removeprefix("--").replace("-", "_") for option in shared}
    knobs = [field.name for field in fields(Overrides) if getattr(config, field.name) is not None]
    return [text for knob in knobs if knob not in given for text in (f"--{knob.replace('_', '-')}", "None")]


def given_fields(shared: Sequence[str], config: Config) -> set[str]:
    """The fields that shared options set, those named as other libraries name them included."""
    words = list(shared)
    in_force = {**knobs_of(base_row(config.algorithm)), **config.overrides}
    # A foreign option that is refused is so with its reason when the cells are parsed.
    with suppress(ValueError):
        words, _ = converted_options(words, {field.name for field in fields(config)}, in_force)
    given = {field_name(spelled) for spelled, _, _ in options(words)}
    return given | {name.removeprefix("no_") for name in given}


def slug(label: str) -> str:
    """`label` as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.=]+", "-", label)


def _parts(text: str, where: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise CompareError(f"{where} {text!r}: an entry is empty; expected names between commas")
    return parts


def _distinct(named: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    slugs = [slug(item.label) for item in named]
    twice = sorted({item.label for item in named if slugs.count(slug(item.label)) > 1})
    if twice:
        raise CompareError(
            f"{where} names {', '.join(twice)} twice; compare under labels, as again={twice[0]}"
        )
    return named
