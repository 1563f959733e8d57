"""The one form in which every reward runs: samples in, as many checked scores out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import isawaitable
from typing import Any, TypeVar, cast

from envs.base import WorldError
from envs.deadline import DeadlineError, in_thread, within
from envs.episode import Episode, GroupRewardFn, RewardFn, Score
from rewards.failures import failed, invalid, number_problem, overdue, shown, told, unscored

T = TypeVar("T")
R = TypeVar("R")

DOES_NOT_APPLY = Score(value=None, error="the reward does not apply to this episode: it returned None")
"""Of a function that leaves an episode out (TRL's None): no failure, and nothing to a weighted sum."""


class RewardBugError(RuntimeError):
    """A bug of a reward function after which no score of it can be believed: the run stops with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is scored: an episode, the id of its trajectory, the ids that the policy sampled in it, in order.

    `step` is the training step that it belongs to, of `num_steps`; 0 where it belongs to none.
    """

    episode: Episode
    id: str = ""
    token_ids: tuple[int, ...] = ()
    step: int = 0
    num_steps: int = 0


Scores = list[Score] | Awaitable[list[Score]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A reward as it is run. `score` returns a score for each sample, in order, or an awaitable of them.

    A score of a sample says itself what went wrong with it; `score` raises nothing but RewardBugError. With
    `is_group` it must be given the scorable members of a group together. `columns` are the names that tasks
    must have, `kind` says whose signature it is, `note` what else a user should know of how it is called.
    With `can_split` its samples do not depend on each other: where one call for several fails as a whole,
    each is asked for alone. `uses_sandbox`: it runs code in one.
    """

    name: str
    score: Callable[[Sequence[Sample]], Scores]
    kind: str = "native"
    is_group: bool = False
    columns: tuple[str, ...] = ()
    can_split: bool = False
    uses_sandbox: bool = False
    note: str = ""

    def __call__(self, episode: Episode) -> Score | Awaitable[Score]:
        """The score of one episode: a form is a RewardFn wherever one is expected."""
        return then(self.score([Sample(episode=episode)]), lambda scores: scores[0])


Convert = Callable[[object, Sample], Score]
"""Makes a score of what a function returned for one sample."""

GroupFn = TypeVar("GroupFn", bound=GroupRewardFn)


def group_reward(function: GroupFn) -> GroupFn:
    """Mark a reward of a whole group: `list[Episode] -> list[Score]`, `async def` or not."""
    function.scores_groups = True  # type: ignore[attr-defined]  # a function takes any attribute
    return function


def of_episodes(name: str, function: RewardFn) -> Form:
    """The form of a reward of one episode; each call fails alone."""
    check = partial(checked, name)

    def score(samples: Sequence[Sample]) -> Scores:
        return together(
            [settle(partial(function, s.episode), partial(readable, name, check, sample=s)) for s in samples]
        )

    return Form(name=name, score=score)


def of_groups(name: str, function: GroupRewardFn) -> Form:
    """The form of a reward of a group; a call that raises leaves every member unscored."""

    def finish(result: object, samples: Sequence[Sample]) -> list[Score]:
        return finished(name, result, samples, partial(checked, name))

    def score(samples: Sequence[Sample]) -> Scores:
        call = partial(function, [sample.episode for sample in samples])
        return settle(call, partial(finish, samples=samples))

    return Form(name=name, score=score, is_group=True)


def finished(name: str, result: object, samples: Sequence[Sample], convert: Convert) -> list[Score]:
    """`result`, of one call for all `samples`, as their scores.

    Raises:
        RewardBugError: there are more or fewer results than samples.
    """
    try:
        listed = plain(result)
    except Exception as error:
        return [invalid(name, sample, _unreadable(result, error)) for sample in samples]
    if isinstance(listed, BaseException) or not isinstance(listed, list | tuple):
        shared = "" if len(samples) == 1 else f" in one call for {len(samples)} samples: none has a score"
        if isinstance(listed, BaseException):
            return [failed(name, sample, listed, shared) for sample in samples]
        problem = f"returned {shown(listed)}, expected a list of {len(samples)}{shared}"
        return [invalid(name, sample, problem) for sample in samples]
    if len(listed) != len(samples):
        raise RewardBugError(
            f"reward {name} returned {len(listed)} results, expected {len(samples)}: one for each sample, in "
            f"their order (samples {samples[0].id} to {samples[-1].id}). Which score belongs to which sample "
            "is not known, so the run stops; mend the function"
        )
    return [readable(name, convert, value, sample) for value, sample in zip(listed, samples, strict=True)]


def readable(name: str, convert: Convert, result: object, sample: Sample) -> Score:
    """`convert` of a result, whose own methods may raise when it is looked at, or find no end."""
    try:
        return convert(result, sample)
    except Exception as error:
        return invalid(name, sample, _unreadable(result, error))


def _unreadable(result: object, error: Exception) -> str:
    return f"returned {shown(result)}, which cannot be read: {told(error)}"


def bounded(name: str, score: Score, sample: Sample) -> Score:
    """`score`, or that its value is none to learn from: a sum of numbers that are need not be."""
    problem = None if score.value is None else number_problem(score.value)
    return score if problem is None else invalid(name, sample, f"its value {problem}")


def plain(value: Any) -> Any:
    """Tensors and arrays as the Python numbers in them; anything else itself."""
    return value.tolist() if hasattr(value, "tolist") else value


def checked(name: str, result: object, sample: Sample) -> Score:
    """`result` where it is a Score of finite numbers; else one that says what is wrong with it."""
    if isinstance(result, BaseException):
        return failed(name, sample, result)
    problem = _problem(result)
    if problem is not None:
        return invalid(name, sample, problem)
    score = cast(Score, result)
    if score.value is None and score != DOES_NOT_APPLY:
        score_of_none = unscored(name, sample, score.error or "", score.error_kind or "world")
        return replace(score_of_none, explanation=score.explanation)
    return score


def _problem(score: object) -> str | None:
    if not isinstance(score, Score):
        return f"returned {type(score).__name__}, expected a Score"
    if not isinstance(score.parts, Mapping):
        return f"Score.parts is {shown(score.parts)}, expected names with numbers"
    if wrong := next((name for name in score.parts if not isinstance(name, str)), None):
        return f"Score.parts has the name {shown(wrong)}, expected texts"
    if score.value is None:
        known = isinstance(score.error, str) and bool(score.error)
        return None if known else "returned a Score of value None without saying why in its error"
    numbers = {"value": score.value, **{f"parts[{name!r}]": part for name, part in score.parts.items()}}
    if score.success is not None:
        numbers["success"] = score.success
    problems = ((name, number_problem(number)) for name, number in numbers.items())
    if found := next((f"Score.{name} {problem}" for name, problem in problems if problem), None):
        return found
    if not isinstance(score.explanation, str):
        return f"Score.explanation is {shown(score.explanation)}, expected a text"
    return None


def then(value: T | Awaitable[T], finish: Callable[[T], R | Awaitable[R]]) -> R | Awaitable[R]:
    """`finish(value)`; an awaitable of it where `value` is one."""
    if not isawaitable(value):
        return finish(cast(T, value))

    async def later() -> R:
        result = finish(await value)
        return await result if isawaitable(result) else cast(R, result)

    return later()


def settle(call: Callable[[], object], finish: Callable[[object], R]) -> R | Awaitable[R]:
    """`finish` of what `call` returns, awaited where it must be, or of the exception that it raised.

    A WorldError that says it is `retryable` is answered with one more call.
    """

    async def later(result: Awaitable[object]) -> R:
        value = await _awaited(result)
        if _is_retryable(value):
            again = _called(call)
            value = await _awaited(again) if isawaitable(again) else again
        return finish(value)

    result = _called(call)
    if _is_retryable(result):
        result = _called(call)
    return later(result) if isawaitable(result) else finish(result)


def _called(call: Callable[[], object]) -> object:
    """What `call` returns, or the exception that it raised."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # user code may call sys.exit; the run must not
        return error


async def _awaited(result: Awaitable[object]) -> object:
    try:
        return await result
    except (Exception, SystemExit) as error:
        return error


def _is_retryable(result: object) -> bool:
    return isinstance(result, WorldError) and result.retryable


def together(results: Sequence[R | Awaitable[R]]) -> list[R] | Awaitable[list[R]]:
    """The results, in order; one awaitable of all of them, awaited at once, where any is awaitable."""
    if not any(isawaitable(result) for result in results):
        return cast(list[R], list(results))

    async def awaited(result: R | Awaitable[R]) -> R:
        return await result if isawaitable(result) else cast(R, result)

    async def later() -> list[R]:
        return list(await asyncio.gather(*map(awaited, results)))

    return later()


async def score_here(form: Form, samples: Sequence[Sample], *, timeout_s: float) -> list[Score]:
    """The scores of `samples` from code of this process, run in a thread beside the event loop.

    At `timeout_s` (wall seconds) they are unscored and the thread is left behind: a thread cannot be killed.
    """

    async def run() -> list[Score]:
        scores = await in_thread(partial(form.score, samples))
        return await scores if isawaitable(scores) else scores

    try:
        return await within(timeout_s, run())
    except DeadlineError as error:
        return [overdue(form.name, sample, str(error)) for sample in samples]
