"""The command line of a recipe: every field of its Config is an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import tyro

from envs.registry import resolve_env, split_level
from rl.algorithms import base_row, knobs_of
from rl.config import Config
from rl.conversions import converted_options, field_name, option_value, options
from rl.defaults import with_smoke_defaults
from rl.lora_settings import undotted
from rl.machine import Machine
from rl.resume import changed_settings, recorded_config, require_unchanged
from rl.run_lock import RunDirError
from rl.validation import ConfigError, validate

BAD_CONFIG = 2
"""Exit status of a run that was refused before it began; 1 is a FAIL at its end."""


C = TypeVar("C", bound=Config)


def parse(default: C, argv: Sequence[str] | None = None, *, description: str = "") -> C:
    """`default` with the options of `argv` (sys.argv's without it), validated for this machine.

    With `--resume` the defaults are the settings that the run recorded; another value is refused, field by
    field, unless it is forced. `--smoke` changes the defaults, so an option beside it still counts. `--env`
    may name the level too (`--env grid:0`). Options of other libraries are converted, and each conversion is
    printed (rl/aliases.py). Exits with BAD_CONFIG, and says what to do, on an unknown option (the nearest one
    is named), a value of the wrong type, or values that cannot run.
    """
    arguments = [undotted(word) for word in (sys.argv[1:] if argv is None else argv)]
    recorded = None
    try:
        if resumed := option_value(arguments, "resume"):
            default = recorded = recorded_config(Path(resumed), type(default))
    except RunDirError as error:
        raise SystemExit(refuse(error)) from None
    if "--smoke" in arguments and recorded is None:
        default = with_smoke_defaults(default)
    try:
        arguments = with_level(arguments, default)
        known = {field.name for field in fields(default)}
        arguments, conversions = converted_options(arguments, known, _in_force(default, arguments))
    except ValueError as error:
        raise SystemExit(refuse(error)) from None
    for conversion in conversions:
        print(f"note: {conversion}", file=sys.stderr)
    config = tyro.cli(type(default), args=arguments, default=default, description=description)
    try:
        if recorded is not None:
            require_unchanged(changed_settings(recorded, config), forced=config.force_resume)
        elif config.force_resume:
            raise ConfigError("force_resume has no effect without --resume DIRECTORY; leave it out")
        validate(config, Machine.here())
    except (ConfigError, RunDirError) as error:
        raise SystemExit(refuse(error)) from None
    return config


def with_level(arguments: Sequence[str], default: Config) -> list[str]:
    """`arguments` with `--env NAME:LEVEL` as `--env NAME --level LEVEL`.

    Raises:
        ValueError: an unknown environment; two levels; or none for another environment than the default's,
            unless the default level is where that environment begins.
    """
    given = option_value(arguments, "env")
    if given is None:
        return list(arguments)
    env, level = split_level(given)
    stated = option_value(arguments, "level")
    if level is None:
        if stated is None and env != default.env:
            levels = resolve_env(env).levels
            if min(levels) != default.level:
                known = ", ".join(map(str, levels))
                raise ValueError(f"--env {env}: say which level, as in --env {env}:{min(levels)} ({known})")
        return list(arguments)
    if stated is not None and stated != str(level):
        raise ValueError(f"--env {given} names level {level}, and --level {stated} another: leave one out")
    others = [parts for parts in options(arguments) if field_name(parts[0]) not in ("env", "level")]
    return [*(word for *_, words in others for word in words), "--env", env, "--level", str(level)]


def _in_force(default: Config, arguments: Sequence[str]) -> dict[str, Any]:
    """The knobs that hold where the command line gives none: the row's, and over them the recipe's own."""
    try:
        row = knobs_of(base_row(option_value(arguments, "algorithm") or default.algorithm))
    except ValueError:
        return {}  # not a policy-gradient row, or none at all, which `validate` says
    return {**row, **default.overrides}


def refuse(error: Exception) -> int:
    """Say why a run does not begin; returns its exit status."""
    print(f"This run was not started:\n{error}", file=sys.stderr)
    return BAD_CONFIG
