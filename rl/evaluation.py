"""What an evaluation found, task by task, and what follows from it: pass@k and avg@n.

Every episode that was asked for is in the denominator. One that could not be scored (the world failed, or the
reward did) counts as not solved, and how many there were is told beside every number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np

from rl.pass_at_k import MIN_TASKS, mean_interval, pass_at_k
from rollout.trajectory import Trajectory, TrajectoryGroup

FORMAT = 1
"""Of evaluation.json; a reader refuses a newer one."""

SOLVED = 1.0
"""Score.success from here on is a solved task."""


class EvaluationError(ValueError):
    """An evaluation that cannot be read, or two that cannot be compared; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """What became of the samples of one task, in their order: solved, not solved, or None, unscored."""

    task: str  # its id
    env: str
    level: int
    solved: tuple[bool | None, ...]

    def __post_init__(self) -> None:
        if not self.solved:
            raise ValueError(f"task {self.task} has no samples; expected at least one")

    @property
    def num_samples(self) -> int:
        return len(self.solved)

    @property
    def num_solved(self) -> int:
        return sum(sample is True for sample in self.solved)

    @property
    def num_unscored(self) -> int:
        return sum(sample is None for sample in self.solved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval; `low` and `high` are None with fewer than MIN_TASKS tasks."""

    value: float
    low: float | None
    high: float | None

    def text(self, *, signed: bool = False) -> str:
        """For a reader: 0.797 (0.743 to 0.842); `signed` for a difference."""
        form = "+.3f" if signed else ".3f"
        if self.low is None or self.high is None:
            return f"{self.value:{form}} (too few tasks for an interval)"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelResult:
    """One environment and level. avg@n is the mean success of all samples; `pass_at` maps k to pass@k."""

    env: str
    level: int
    num_tasks: int
    num_samples: int  # of each task
    num_unscored: int  # episodes
    average: Estimate
    pass_at: Mapping[int, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One policy on a set of tasks. `settings` hold what it was sampled with, JSON values.

    `policy` says which policy it was, `versions` what software sampled and scored it. `errors` counts the
    unscored episodes by their reason.
    """

    policy: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    outcomes: tuple[TaskOutcome, ...]
    errors: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = Counter((*cell_of(outcome), outcome.task) for outcome in self.outcomes)
        if repeated := [task for (*_, task), count in ids.items() if count > 1]:
            raise EvaluationError(f"task {repeated[0]} is there more than once; expected distinct tasks")

    def results(self, ks: Iterable[int]) -> list[LevelResult]:
        return [level_result(outcomes, ks) for outcomes in by_level(self.outcomes).values()]

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it: a sample is 1 (solved), 0 or null (unscored)."""
        tasks = [
            {
                "task": outcome.task,
                "env": outcome.env,
                "level": outcome.level,
                "solved": [None if sample is None else int(sample) for sample in outcome.solved],
            }
            for outcome in self.outcomes
        ]
        facts = {"policy": self.policy, "settings": self.settings, "versions": self.versions}
        return {"format": FORMAT, **facts, "errors": dict(self.errors), "tasks": tasks}

    @classmethod
    def from_json(cls, row: Any) -> Self:
        """The inverse of `to_json`; keys that it does not know are the file's own affair.

        Raises:
            EvaluationError: it is no evaluation, or one of a newer version.
        """
        if not isinstance(row, dict) or "format" not in row:
            raise EvaluationError("expected the object that scripts.evaluate writes, with its 'format'")
        if row["format"] != FORMAT:
            raise EvaluationError(f"format {row['format']!r}; this version reads format {FORMAT}")
        try:
            return cls(
                policy=dict(row["policy"]),
                settings=dict(row["settings"]),
                versions=dict(row["versions"]),
                outcomes=tuple(map(_outcome, row["tasks"])),
                errors=dict(row["errors"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"not whole: {type(error).__name__}: {error}") from error


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in `path`, an evaluation.json. Raises EvaluationError, which names the file."""
    try:
        return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} is no evaluation that can be read: {error}") from error


def _outcome(row: Mapping[str, Any]) -> TaskOutcome:
    samples = {1: True, 0: False, None: None}
    solved = tuple(samples[sample] for sample in row["solved"])
    return TaskOutcome(task=str(row["task"]), env=str(row["env"]), level=int(row["level"]), solved=solved)


def outcome_of(group: TrajectoryGroup, env: str, level: int) -> TaskOutcome:
    """What became of the samples of one task of `env`, as it was named, at `level`."""
    solved = tuple(
        None if t.score.value is None else (t.score.success or 0.0) >= SOLVED for t in group.trajectories
    )
    return TaskOutcome(task=group.task.id, env=env, level=level, solved=solved)


def count_errors(trajectories: Iterable[Trajectory]) -> dict[str, int]:
    """Unscored episodes by what failed: the kind of the world's error, or "reward"."""
    kinds = (t.error.kind if t.error else "reward" for t in trajectories if t.score.value is None)
    return dict(Counter(kinds).most_common())


def by_level(outcomes: Iterable[TaskOutcome]) -> dict[tuple[str, int], list[TaskOutcome]]:
    """(env, level) -> its tasks, in order."""
    ordered = sorted(outcomes, key=cell_of)
    return {cell: list(members) for cell, members in groupby(ordered, key=cell_of)}


def cell_of(outcome: TaskOutcome) -> tuple[str, int]:
    return outcome.env, outcome.level


def level_result(outcomes: Sequence[TaskOutcome], ks: Iterable[int]) -> LevelResult:
    """The result of one environment and level.

    Raises:
        EvaluationError: a k is larger than the number of samples, or tasks differ in that number.
    """
    num_samples = num_samples_of(outcomes)
    return LevelResult(
        env=outcomes[0].env,
        level=outcomes[0].level,
        num_tasks=len(outcomes),
        num_samples=num_samples,
        num_unscored=sum(outcome.num_unscored for outcome in outcomes),
        average=_mean_estimate(task_values(outcomes, 1), 1 / num_samples),
        pass_at={k: _mean_estimate(task_values(outcomes, k), k / num_samples) for k in ks},
    )


def num_samples_of(outcomes: Sequence[TaskOutcome]) -> int:
    first = outcomes[0]
    for outcome in outcomes:
        if outcome.num_samples != first.num_samples:
            raise EvaluationError(
                f"task {outcome.task} has {outcome.num_samples} samples and {first.task} "
                f"{first.num_samples}; expected as many of every task of {first.env}:{first.level}"
            )
    return first.num_samples


def task_values(outcomes: Sequence[TaskOutcome], k: int) -> np.ndarray:
    """pass@k of each task: float64 (N,)."""
    num_samples = num_samples_of(outcomes)
    if k > num_samples:
        raise EvaluationError(
            f"pass@{k} of {outcomes[0].env}:{outcomes[0].level}: there are {num_samples} samples a task; "
            f"give --k up to {num_samples}, or evaluate with more"
        )
    return pass_at_k(num_samples, np.array([outcome.num_solved for outcome in outcomes]), k)


def _mean_estimate(values: np.ndarray, weight: float) -> Estimate:
    return estimate_of(values, mean_interval(values, weight))


def estimate_of(values: np.ndarray, interval: tuple[float, float]) -> Estimate:
    low, high = interval if len(values) >= MIN_TASKS else (None, None)
    return Estimate(value=float(values.mean()), low=low, high=high)
