"""The one form in which every reward runs: samples in, as many checked scores out."""

from __future__ import annotations

import asyncio
import importlib
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeVar, cast

from envs.deadline import DeadlineError, in_thread, within
from envs.episode import Episode, ErrorKind, GroupRewardFn, RewardFn, Score

T = TypeVar("T")
R = TypeVar("R")

DOES_NOT_APPLY = Score(value=None, error="the reward does not apply to this episode: it returned None")
"""Of a function that leaves an episode out (TRL's None): no failure, and nothing to a weighted sum."""

MAX_SHOWN = 200
"""Characters of a wrong value that an error shows."""

MAX_TRACEBACK = 4000
"""Characters of a traceback that an error keeps, the last ones."""

_ROOT = Path(__file__).resolve().parent.parent
_OURS = (
    *(str(_ROOT / part) for part in ("rewards", "envs/names.py", "envs/deadline.py")),
    *(asyncio.__path__[0], importlib.__path__[0], "<frozen "),
)
"""How the files of frames begin that are none of the user's."""


class RewardBugError(RuntimeError):
    """A bug of a reward function after which no score of it can be believed: the run stops with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is scored: an episode, the id of its trajectory, the ids that the policy sampled in it, in order.

    `step` is the training step that it belongs to; 0 where it belongs to none.
    """

    episode: Episode
    id: str = ""
    token_ids: tuple[int, ...] = ()
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A reward as it is run. `score` returns a score for each sample, in order, or an awaitable of them.

    A score of a sample says itself what went wrong with it; `score` raises nothing but RewardBugError. With
    `is_group` it must be given the scorable members of a group together. `columns` are the names that tasks
    must have, `kind` says whose signature it is.
    """

    name: str
    score: Callable[[Sequence[Sample]], list[Score] | Awaitable[list[Score]]]
    kind: str = "native"
    is_group: bool = False
    columns: tuple[str, ...] = ()

    def __call__(self, episode: Episode) -> Score | Awaitable[Score]:
        """The score of one episode: a form is a RewardFn wherever one is expected."""
        return then(self.score([Sample(episode=episode)]), lambda scores: scores[0])


GroupFn = TypeVar("GroupFn", bound=GroupRewardFn)


def group_reward(function: GroupFn) -> GroupFn:
    """Mark a reward of a whole group: `list[Episode] -> list[Score]`, `async def` or not."""
    function.scores_groups = True  # type: ignore[attr-defined]  # a function takes any attribute
    return function


def of_episodes(name: str, function: RewardFn) -> Form:
    """The form of a reward of one episode; each call fails alone."""

    def score(samples: Sequence[Sample]) -> list[Score] | Awaitable[list[Score]]:
        return together(
            [settle(partial(function, s.episode), partial(checked, name, sample=s)) for s in samples]
        )

    return Form(name=name, score=score)


def of_groups(name: str, function: GroupRewardFn) -> Form:
    """The form of a reward of a group; a call that raises leaves every member unscored."""

    def finish(result: object, samples: Sequence[Sample]) -> list[Score]:
        return finished(name, result, samples, partial(checked, name))

    def score(samples: Sequence[Sample]) -> list[Score] | Awaitable[list[Score]]:
        call = partial(function, [sample.episode for sample in samples])
        return settle(call, partial(finish, samples=samples))

    return Form(name=name, score=score, is_group=True)


def finished(
    name: str, result: object, samples: Sequence[Sample], convert: Callable[[object, Sample], Score]
) -> list[Score]:
    """`result`, of one call for all `samples`, as their scores.

    Raises:
        RewardBugError: there are more or fewer results than samples.
    """
    listed = plain(result)
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
    return [convert(value, sample) for value, sample in zip(listed, samples, strict=True)]


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
        return _unscored(name, sample, score.error or "", score.error_kind or "world")
    return score


def number_problem(value: object) -> str | None:
    """What keeps `value` from being a number to learn from; None for nothing."""
    if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
        return None
    return f"is {shown(value)}, expected a finite number"


def _problem(score: object) -> str | None:
    if not isinstance(score, Score):
        return f"returned {type(score).__name__}, expected a Score"
    if not isinstance(score.parts, Mapping):
        return f"Score.parts is {shown(score.parts)}, expected names with numbers"
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


def invalid(name: str, sample: Sample, problem: str) -> Score:
    """The score of a sample for which the reward returned something else than a score."""
    return _unscored(name, sample, problem, "invalid")


def failed(name: str, sample: Sample, error: BaseException, note: str = "") -> Score:
    """The score of a sample on which the reward raised: the line that raised, then the user's own frames."""
    return _unscored(name, sample, describe(error, note), "exception")


def _unscored(name: str, sample: Sample, problem: str, kind: ErrorKind) -> Score:
    place = f" on {sample.id}" if sample.id else ""
    return Score(value=None, error=f"reward {name}{place}: {problem}", error_kind=kind)


def shown(value: object) -> str:
    """`value` as an error shows it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " ..."


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of a traceback that are not ours and not the event loop's."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith(_OURS)]


def describe(error: BaseException, note: str = "") -> str:
    """Type, message and the line that raised; below them the traceback, in frames of the user's alone."""
    frames = user_frames(error)
    what = f"{type(error).__name__}: {error}"
    if not frames:
        return what + note
    last = frames[-1]
    where = f" ({last.filename}:{last.lineno} in {last.name}: {last.line})"
    lines = "".join(["Traceback (most recent call last):\n", *traceback.format_list(frames), what])
    return f"{what}{where}{note}\n{lines[-MAX_TRACEBACK:]}"


def then(value: T | Awaitable[T], finish: Callable[[T], R | Awaitable[R]]) -> R | Awaitable[R]:
    """`finish(value)`; an awaitable of it where `value` is one."""
    if not isawaitable(value):
        return finish(cast(T, value))

    async def later() -> R:
        result = finish(await value)
        return await result if isawaitable(result) else cast(R, result)

    return later()


def settle(call: Callable[[], object], finish: Callable[[object], R]) -> R | Awaitable[R]:
    """`finish` of what `call` returns, awaited where it must be, or of the exception that it raised."""

    async def later(result: Awaitable[object]) -> R:
        try:
            value: object = await result
        except (Exception, SystemExit) as error:  # user code may call sys.exit; the run must not
            value = error
        return finish(value)

    try:
        result = call()
    except (Exception, SystemExit) as error:
        result = error
    return later(result) if isawaitable(result) else finish(result)


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


def overdue(name: str, sample: Sample, problem: str) -> Score:
    """The score of a sample whose reward did not finish in its time."""
    return _unscored(name, sample, problem, "timeout")


def crashed(name: str, sample: Sample, problem: str) -> Score:
    """The score of a sample whose reward ended the process that it ran in."""
    return _unscored(name, sample, problem, "crashed")
