"""Mathematical answers compared as mathematics: 1/2, 0.5 and \\boxed{\\frac12} are one answer.

    python -m recipes.calc_grpo --env my_questions.py:ENV --reward rewards.math_answer:math_answer

The comparison is math-verify's (https://github.com/huggingface/Math-Verify). An answer can keep it busy for
ever, and its own time limit is an alarm, which works on a main thread alone: a run that had it elsewhere
scored every answer 0 (verl PR 5635). So the alarm is off, and rewards by name run in a child process that
`--reward-timeout-s` kills (rewards/scoring.py). What is known to keep it busy is refused by its size before.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from envs.episode import Episode, Score
from rewards.math_bounds import is_too_large

MAX_CHARS = 4000
"""Of an answer, the last characters are read: the result stands at its end."""

_DELIMITERS = ("$", "\\boxed", "\\(", "\\[")

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarm is off


def math_answer(episode: Episode) -> Score:
    """1 where the answer equals Task.answer, else 0; success is the same.

    An answer with nothing to compare in it is 0, and so is one whose numbers pass the bounds of
    rewards/math_bounds.py, before anything of it is computed. A task whose own answer cannot be read leaves
    the episode unscored: that is not the policy's fault.
    """
    reference = episode.task.answer
    if not reference:
        return Score(value=None, error=f"task {episode.task.id} has no answer to compare with")
    expected = _reference(reference)
    if not expected:
        return Score(
            value=None,
            error=f"task {episode.task.id}: its answer {reference!r} cannot be read as mathematics; write it "
            "as LaTeX or as a number",
        )
    text = episode.answer[-MAX_CHARS:]
    if is_too_large(text):
        return Score(value=0.0, success=0.0, explanation="not compared: its numbers are too large")
    given = _read(text)
    is_right = bool(given) and verify(list(expected), given, timeout_seconds=None)
    return Score(
        value=float(is_right), success=float(is_right), explanation=f"read as {given}, expected {expected}"
    )


@lru_cache(maxsize=4096)
def _reference(text: str) -> tuple[Any, ...]:
    """A reference as math-verify reads it, all of it: bare, "(3, 4)" would be read as its last number."""
    is_marked = any(delimiter in text for delimiter in _DELIMITERS)
    return tuple(_read(text if is_marked else f"\\boxed{{{text}}}"))


def _read(text: str) -> list[Any]:
    """All boxed expressions of a text as one, else its last expression; no second try where that fails."""
    return parse(text, extraction_mode="first_match", fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]  # None: no alarm of its own
