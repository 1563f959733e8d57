"""Rewards: how well an episode went. A reward is a function of the episode and of nothing else."""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, cast

from envs.deadline import DeadlineError, in_thread, within
from envs.episode import Episode, RewardFn, Score
from envs.names import load_object, unknown_name
from envs.registry import EnvDefinition

if TYPE_CHECKING:
    from rewards.judge_asking import OwnPolicy

__all__ = ["Reward", "RewardFn", "Score", "resolve_reward", "score_episode", "shuffle_scores", "weighted"]

_SHUFFLED = "shuffled:"
LEARNED = "reward_model:"
"""What the name of a learned reward begins with; the folder or hub id of its model follows."""
JUDGED = "judge:"
"""What the name of a judge begins with; its file follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward by name. `shuffled` asks the collector to apply `shuffle_scores` to each batch.

    `wall_s` is its own deadline for one episode, in seconds; None: the caller's.
    """

    name: str
    fn: RewardFn
    shuffled: bool = False
    wall_s: float | None = None


def resolve_reward(spec: str, definition: EnvDefinition, own: OwnPolicy | None = None) -> Reward:
    """The reward that `spec` names; its success is the environment's own where that has one.

    "" or the environment's name: its own score. "file.py:function" or "package.module:function": that one.
    "reward_model:FOLDER": a learned one (rewards/reward_model.py). "judge:FILE": a judge (rewards/judge.py),
    which may ask `own`, a policy of the caller's; without one such a judge is resolved, and leaves unscored.
    "shuffled:<any of these>": the same, permuted within the batch, the control that must not learn.
    """
    if spec.startswith(_SHUFFLED):
        inner = spec.removeprefix(_SHUFFLED)
        if inner.startswith(_SHUFFLED):
            raise ValueError(f"reward {spec!r} is shuffled twice; write {inner!r}")
        reward = resolve_reward(inner, definition, own)
        return replace(reward, name=_SHUFFLED + reward.name, shuffled=True)
    if spec in ("", definition.name):
        return Reward(name=definition.name, fn=definition.score)
    if spec.startswith(LEARNED):
        from rewards.reward_model import (
            reward_model,  # torch and transformers, which other rewards do without
        )

        return Reward(name=spec, fn=reward_model(spec.removeprefix(LEARNED), definition.score))
    if spec.startswith(JUDGED):
        from rewards.judge import judge_reward  # brings a judge's machinery, which other rewards do without

        return judge_reward(spec, spec.removeprefix(JUDGED), definition.score, own)
    try:
        function = load_object(spec)
    except ValueError as error:
        problem = unknown_name("reward", spec, [definition.name, _SHUFFLED + definition.name])
        raise ValueError(f"{problem}; {error}") from error
    if not callable(function):
        raise ValueError(
            f"reward {spec!r} is a {type(function).__name__}; expected a function Episode -> Score"
        )
    # What it returns is checked at each call.
    return Reward(name=spec, fn=with_success_of(definition.score, cast(RewardFn, function)))


def with_success_of(env_score: RewardFn, function: RewardFn) -> RewardFn:
    """`function`, its success the environment's own wherever that has one.

    A reward says what is trained for, not what is right: runs with different rewards are judged by one
    measure. A success that the function gives itself is kept as the part "success".
    """
    if function is env_score:
        return function

    def score(episode: Episode) -> Score:
        own = function(episode)
        if not isinstance(own, Score) or own.value is None:
            return own
        success = env_score(episode).success
        if success is None:
            return own
        parts = own.parts if own.success is None else {**own.parts, "success": own.success}
        return replace(own, parts=parts, success=success)

    return score


async def score_episode(reward: Reward, episode: Episode, *, timeout_s: float) -> Score:
    """The reward's Score; *unscored*, never 0, with the reason in `error` when it failed to give a valid one.

    The function runs in a thread, so a slow one does not hold up the agents, unless it is a coroutine
    function. At `timeout_s` (wall seconds; the reward's own deadline comes first) its episode is unscored and
    the thread is left behind; a thread cannot be killed.
    """
    try:
        is_async = iscoroutinefunction(reward.fn)
        work = reward.fn(episode) if is_async else in_thread(partial(reward.fn, episode))
        score = await within(reward.wall_s or timeout_s, cast(Awaitable[Score], work))
    except DeadlineError as error:
        return Score(value=None, error=f"{_OVERDUE}{reward.name}: {error}")
    except (Exception, SystemExit) as error:  # user code may call sys.exit; the run must not
        return _unscored(reward, _describe(error))
    problem = _problem(score)
    if problem is None:
        return score
    said = score if isinstance(score, Score) and score.value is None else _unscored(reward, problem)
    return replace(said, error=f"reward {reward.name}: {problem}")


_OVERDUE = "overdue reward "


def is_overdue(score: Score) -> bool:
    """Whether a Score of `score_episode` is unscored because the reward did not finish in its time."""
    return score.value is None and (score.error or "").startswith(_OVERDUE)


def _unscored(reward: Reward, problem: str) -> Score:
    return Score(value=None, error=f"reward {reward.name}: {problem}")


def _problem(score: object) -> str | None:
    """What is wrong with what a reward returned; None for a Score of finite numbers."""
    if not isinstance(score, Score):
        return f"returned {type(score).__name__}, expected a Score"
    if score.value is None:
        return score.error or "returned a Score of value None without saying why in its error"
    numbers = {"value": score.value, **{f"parts[{name!r}]": part for name, part in score.parts.items()}}
    if score.success is not None:
        numbers["success"] = score.success
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            return f"Score.{name} is {number!r}, expected a finite number"
    return None


def _describe(error: BaseException) -> str:
    """Type, message and the line that raised."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno} in {frame.name}: {frame.line})"


def weighted(components: Mapping[str, tuple[RewardFn, float]]) -> RewardFn:
    """The weighted sum of named rewards; each one's own value is logged as a part. Weight 0 only logs.

    One unscored component makes the whole unscored: a sum without it would be another reward. The whole is a
    success when every component that reports success does.
    """
    if not components:
        raise ValueError("weighted() was given no rewards; expected {name: (function, weight)}")
    for name, (_, weight) in components.items():
        if not math.isfinite(weight):
            raise ValueError(f"reward {name!r} has weight {weight}; expected a finite number")

    def score(episode: Episode) -> Score:
        value = 0.0
        parts: dict[str, float] = {}
        successes: list[float] = []
        for name, (function, weight) in components.items():
            component = function(episode)
            if component.value is None:
                return Score(value=None, error=f"{name}: {component.error or 'unscored'}")
            value += weight * component.value
            parts[name] = component.value
            parts |= {f"{name}/{part}": number for part, number in component.parts.items()}
            if component.success is not None:
                successes.append(component.success)
        return Score(value=value, parts=parts, success=min(successes, default=None))

    return score


def shuffle_scores(scores: Sequence[Score], rng: random.Random) -> list[Score]:
    """The values permuted among the scored, at random: the same distribution, and no information.

    Unscored ones stay where they are. Success and parts stay with their trajectory, which did earn them; the
    part "unshuffled" keeps the value that was taken away.
    """
    values = [score.value for score in scores if score.value is not None]
    rng.shuffle(values)
    shuffled = iter(values)
    return [
        score
        if score.value is None
        else replace(score, value=next(shuffled), parts={**score.parts, "unshuffled": score.value})
        for score in scores
    ]
