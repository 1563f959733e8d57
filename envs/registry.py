"""Environments by name: `calc`, `my_env.py:ENV`, `package.module:ENV`.

With a level behind it, on a command line: `calc:2`, `my_env.py:ENV:2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.base import Env
from envs.episode import RewardFn
from envs.messages import Message, Task
from envs.names import load_object, unknown_name

Player = Callable[[Task, Sequence[Message]], str]
"""A scripted policy: the task and the transcript so far, to the next assistant text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The most that the reference player's episodes of one level need, in characters and turns."""

    prompt_chars: int
    turns: int  # assistant messages, the answer included
    turn_chars: int  # of one assistant message
    reply_chars: int  # of one tool message


@dataclass(frozen=True, kw_only=True)
class EnvDefinition:
    """Everything that training, evaluation and `check_env` need of an environment.

    `make_task(level, seed)` is pure and equal in every process; `score` is pure. `reference` solves every
    task of every level (it raises where it cannot). `hacks` are wrong players, by name, that must score 0.
    `uses_sandbox`: whether episodes or their scores run code in a sandbox.
    """

    name: str
    make_env: Callable[[], Env]
    make_task: Callable[[int, int], Task]
    levels: tuple[int, ...]
    score: RewardFn
    reference: Player
    lengths: Callable[[int], Lengths]
    hacks: Mapping[str, Player] = field(default_factory=dict)
    uses_sandbox: bool = False

    def require_level(self, level: int) -> int:
        """`level` itself, or ValueError with the levels that exist."""
        if level not in self.levels:
            raise ValueError(unknown_name(f"level of environment {self.name!r}", level, self.levels))
        return level


def shipped_envs() -> tuple[str, ...]:
    """The names of the environments that come with the library; nothing is imported."""
    tasks = Path(__file__).parent / "tasks"
    return tuple(sorted(file.stem for file in tasks.glob("*.py") if not file.stem.startswith("_")))


def split_level(spec: str) -> tuple[str, int | None]:
    """(environment, level) of `calc:2` or `my_env.py:ENV:2`; the level is None in `calc` and `my_env.py:ENV`.

    Raises:
        ValueError: what stands where a level belongs is no whole number from 0 on.
    """
    env, colon, level = spec.rpartition(":")
    is_attribute = level.isidentifier() and env not in shipped_envs()
    if not colon or is_attribute:
        return spec, None
    if not (level.isascii() and level.isdigit()):
        raise ValueError(f"{spec!r}: {level!r} is no level; expected a whole number, as in '{env}:1'")
    return env, int(level)


def resolve_env(spec: str) -> EnvDefinition:
    """The environment that `spec` names, no level in it; ValueError with the nearest name otherwise."""
    env, level = split_level(spec)
    if level is not None:
        raise ValueError(f"{spec!r} names a level too; here give {env!r}, and the level, {level}, beside it")
    if ":" not in spec:
        if spec not in shipped_envs():
            problem = unknown_name("environment", spec, shipped_envs())
            raise ValueError(f"{problem}; your own is 'my_env.py:ENV' or 'package.module:ENV'")
        spec = f"envs.tasks.{spec}:ENV"
    definition = load_object(spec)
    if not isinstance(definition, EnvDefinition):
        raise ValueError(f"{spec} is a {type(definition).__name__}; expected an envs.registry.EnvDefinition")
    return definition
