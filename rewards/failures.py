"""Scores of what could not be scored, and how they tell of it."""

from __future__ import annotations

import asyncio
import importlib
import math
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from envs.base import JudgeError, WorldError
from envs.episode import ErrorKind, Score

if TYPE_CHECKING:
    from rewards.forms import Sample

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


MAX_VALUE = 1e6
"""The largest size of a score or part: beyond it one episode would drown every other in a mean."""


def number_problem(value: object) -> str | None:
    """What keeps `value` from being a number to learn from; None for nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        return f"is {shown(value)}, expected a finite number"
    if not -MAX_VALUE <= value <= MAX_VALUE:
        return f"is {shown(value)}, expected at most {MAX_VALUE:,.0f} in size"
    return None


def invalid(name: str, sample: Sample, problem: str) -> Score:
    """The score of a sample for which the reward returned something else than a score."""
    return unscored(name, sample, problem, "invalid")


def failed(name: str, sample: Sample, error: BaseException, note: str = "") -> Score:
    """The score of a sample on which the reward raised: the line that raised, then the user's own frames."""
    kind: ErrorKind = "exception"
    if isinstance(error, WorldError):  # what it stands on failed: no fault of the reward's either
        kind = "judge" if isinstance(error, JudgeError) else "world"
    return unscored(name, sample, describe(error, note), kind)


def unscored(name: str, sample: Sample, problem: str, kind: ErrorKind) -> Score:
    place = f" on {sample.id}" if sample.id else ""
    return Score(value=None, error=f"reward {name}{place}: {problem}", error_kind=kind)


def shown(value: object) -> str:
    """`value` as an error shows it."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " ..."


def told(error: BaseException) -> str:
    """The type and message of an exception; one of a user's may raise when it is asked for its message."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as worse:
        return f"{type(error).__name__}, whose message raises {type(worse).__name__}"


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of a traceback that are not ours and not the event loop's."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith(_OURS)]


def describe(error: BaseException, note: str = "") -> str:
    """Type, message and the line that raised; below them the traceback, in frames of the user's alone."""
    frames = user_frames(error)
    what = told(error)
    if not frames:
        return what + note
    last = frames[-1]
    where = f" ({last.filename}:{last.lineno} in {last.name}: {last.line})"
    lines = "".join(["Traceback (most recent call last):\n", *traceback.format_list(frames), what])
    return f"{what}{where}{note}\n{lines[-MAX_TRACEBACK:]}"


def overdue(name: str, sample: Sample, problem: str) -> Score:
    """The score of a sample whose reward did not finish in its time."""
    return unscored(name, sample, problem, "timeout")


def crashed(name: str, sample: Sample, problem: str) -> Score:
    """The score of a sample whose reward ended the process that it ran in."""
    return unscored(name, sample, problem, "crashed")
