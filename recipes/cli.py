"""The command line of a recipe: every field of its Config is an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

import tyro

from rl.aliases import converted_options
from rl.config import Config, with_smoke_defaults
from rl.machine import Machine
from rl.validation import ConfigError, validate

BAD_CONFIG = 2
"""Exit status of a run that was refused before it began; 1 is a FAIL at its end."""


C = TypeVar("C", bound=Config)


def parse(default: C, argv: Sequence[str] | None = None, *, description: str = "") -> C:
    """`default` with the options of `argv` (sys.argv's without it), validated for this machine.

    `--smoke` changes the defaults, so an option beside it still counts. Exits with BAD_CONFIG, and says what
    to do, on an unknown option (the nearest one is named), a value of the wrong type, or values that cannot
    run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--smoke" in arguments:
        default = with_smoke_defaults(default)
    try:
        arguments, notes = converted_options(arguments, frozenset(field.name for field in fields(default)))
    except ValueError as error:
        raise SystemExit(refuse(error)) from None
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    config = tyro.cli(type(default), args=arguments, default=default, description=description)
    try:
        validate(config, Machine.here())
    except ConfigError as error:
        raise SystemExit(refuse(error)) from None
    return config


def refuse(error: Exception) -> int:
    """Say why a run does not begin; returns its exit status."""
    print(f"This run was not started:\n{error}", file=sys.stderr)
    return BAD_CONFIG
