"""What functions of TRL, verl and OpenRLHF return, as scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from envs.episode import Score
from rewards.failures import failed, invalid, number_problem, shown
from rewards.forms import DOES_NOT_APPLY, Sample, finished, plain


def number_or_none(name: str, value: object, sample: Sample) -> Score:
    """A TRL function's result for one sample; a bool counts, as it does in TRL's tensor of them."""
    return DOES_NOT_APPLY if value is None else _number(name, counted(value), sample)


def _number(name: str, value: object, sample: Sample) -> Score:
    value = plain(value)
    problem = number_problem(value)
    if problem is not None:
        return invalid(name, sample, problem.replace("is ", "returned ", 1))
    return Score(value=float(value))  # type: ignore[arg-type]  # no problem: a number


def number_or_dict(name: str, result: object, sample: Sample) -> Score:
    """verl's result for one sample: a number or bool, or a dict with "score" and whatever is to be logged.

    A number is logged as "acc", as verl does.
    """
    if isinstance(result, BaseException):
        return failed(name, sample, result)
    if not isinstance(result, Mapping):
        score = _number(name, counted(result), sample)
        return score if score.value is None else replace(score, parts={"acc": score.value})
    if "score" not in result:
        return invalid(
            name, sample, f"returned a dict without 'score' (it has {', '.join(map(str, result))})"
        )
    score = _number(name, counted(result["score"]), sample)
    others = {str(key): value for key, value in result.items() if key != "score"}
    return score if score.value is None else with_logged(score, others)


def openrlhf_score(name: str, result: object, sample: Sample) -> Score:
    """OpenRLHF's result for a batch of one."""
    if isinstance(result, BaseException):
        return failed(name, sample, result)
    if not isinstance(result, Mapping) or "rewards" not in result:
        return invalid(name, sample, f"returned {shown(result)}, expected a dict with 'rewards'")
    logs = result.get("extra_logs") or {}
    logged = {"scores": result.get("scores"), **(logs if isinstance(logs, Mapping) else {"extra_logs": logs})}
    (score,) = finished(name, _flat(result["rewards"]), [sample], partial(_number, name))
    others = {str(key): _only(value) for key, value in logged.items() if value is not None}
    return score if score.value is None else with_logged(score, others)


def _flat(value: object) -> object:
    """A batch of one as a list: also where it is one number."""
    value = plain(value)
    return [value] if isinstance(value, int | float) else value


def _only(value: object) -> object:
    """The value of a batch of one."""
    value = plain(value)
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def counted(value: object) -> object:
    """A bool as 0 or 1, also where a result is one of numpy's."""
    value = plain(value)
    return float(value) if isinstance(value, bool) else value


def with_logged(score: Score, others: Mapping[str, Any]) -> Score:
    """`score` with what came besides it: numbers as parts, the rest in its explanation.

    Raises:
        TypeError, ValueError: that cannot be written down, as a circle or a name that is no text cannot.
    """
    parts = numbers(others)
    rest = {name: value for name, value in others.items() if name not in parts}
    return replace(score, parts=parts, explanation=explained(rest))


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of `values` that are numbers to take a mean of."""
    found = {name: counted(value) for name, value in values.items()}
    return {name: float(value) for name, value in found.items() if number_problem(value) is None}  # type: ignore[arg-type]


def explained(values: Mapping[str, Any]) -> str:
    """Values that are no numbers, as one line of JSON; nothing for none."""
    return json.dumps(values, default=repr) if values else ""
