"""Two evaluations of the same tasks: what one adds to the other, task by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.evaluation import (
    Estimate,
    Evaluation,
    EvaluationError,
    TaskOutcome,
    by_level,
    estimate_of,
    num_samples_of,
    task_values,
)
from rl.pass_at_k import difference_interval

TaskKey = tuple[str, int, str]
"""Environment, level and id of a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelDifference:
    """One environment and level: what is added to the other's avg@n and pass@k, task by task."""

    env: str
    level: int
    num_tasks: int
    average: Estimate
    pass_at: Mapping[int, Estimate]


def differences(ours: Evaluation, other: Evaluation, ks: Iterable[int]) -> list[LevelDifference]:
    """What `ours` adds to `other`'s results on the same tasks, paired by task id.

    Raises:
        EvaluationError: they are not of the same tasks (the first that differ are named), or one of them has
            too few samples for a k.
    """
    ks = list(ks)
    require_same_tasks(task_keys(ours.outcomes), task_keys(other.outcomes))
    theirs = by_level(other.outcomes)
    return [
        _level_difference(outcomes, theirs[cell], ks) for cell, outcomes in by_level(ours.outcomes).items()
    ]


def _level_difference(
    ours: Sequence[TaskOutcome], theirs: Sequence[TaskOutcome], ks: Sequence[int]
) -> LevelDifference:
    by_task = {outcome.task: outcome for outcome in theirs}
    paired = [by_task[outcome.task] for outcome in ours]
    num_samples = min(num_samples_of(ours), num_samples_of(paired))

    def estimate(k: int) -> Estimate:
        difference = task_values(ours, k) - task_values(paired, k)
        interval = difference_interval(difference, k / num_samples)
        return estimate_of(difference, interval)

    return LevelDifference(
        env=ours[0].env,
        level=ours[0].level,
        num_tasks=len(ours),
        average=estimate(1),
        pass_at={k: estimate(k) for k in ks},
    )


def task_keys(outcomes: Iterable[TaskOutcome]) -> set[TaskKey]:
    return {(outcome.env, outcome.level, outcome.task) for outcome in outcomes}


def require_same_tasks(ours: set[TaskKey], theirs: set[TaskKey]) -> None:
    """Raise EvaluationError, which names the first tasks that only one of the two has."""
    parts = [
        f"{len(only)} of {len(whole)} tasks are only in {whose} (first {sorted(only)[0][-1]})"
        for whose, whole, only in (("this", ours, ours - theirs), ("the other", theirs, theirs - ours))
        if only
    ]
    if parts:
        raise EvaluationError(
            f"the two evaluations are not of the same tasks: {'; '.join(parts)}. A paired difference needs "
            "equal --env, --num-tasks and --seed"
        )


def differing_settings(ours: Evaluation, other: Evaluation) -> list[str]:
    """What else differs between the two than the policy, one line a setting."""
    return _differing(ours.settings, other.settings)


def differing_versions(ours: Evaluation, other: Evaluation) -> list[str]:
    """What software differs between the two, one line a package; "commit" is that of our code."""
    return _differing(ours.versions, other.versions)


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    names = sorted(ours.keys() | theirs.keys())
    pairs = ((name, ours.get(name), theirs.get(name)) for name in names)
    return [f"{name}: {mine!r} against {other!r}" for name, mine, other in pairs if mine != other]
