"""Columns of the data as functions of other libraries name them: a task's metadata, and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from envs.episode import Score
from envs.messages import Task
from rewards.failures import invalid
from rewards.forms import Form, Sample, Scores, then

ANSWER_NAMES = ("answer", "solution", "ground_truth", "label")
"""Columns under which a task's answer is found, unless its metadata has one of that name."""


def columns_of(task: Task) -> dict[str, Any]:
    """A task's row of data, as a trainer over a data set has it.

    `ground_truth` of a verl row's `reward_model` is a column too: it is where verl looks for it.
    """
    answers = dict.fromkeys(ANSWER_NAMES, task.answer) if task.answer is not None else {}
    nested = task.metadata.get("reward_model")
    truth = (
        {"ground_truth": nested["ground_truth"]}
        if isinstance(nested, Mapping) and "ground_truth" in nested
        else {}
    )
    return {**answers, **truth, **task.metadata}


def lacking(columns: Sequence[str], task: Task) -> list[str]:
    """Those of `columns` that a task does not have."""
    there = columns_of(task)
    return [name for name in columns if name not in there]


def shared_columns(samples: Iterable[Sample]) -> dict[str, list[Any]]:
    """The columns that all samples have, each as a list over them."""
    rows = [columns_of(sample.episode.task) for sample in samples]
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    return {name: [row[name] for row in rows] for name in names}


def requiring(form: Form) -> Form:
    """`form`, asked only for samples whose task has its columns; the others are unscored."""
    if not form.columns:
        return form

    def score(samples: Sequence[Sample]) -> Scores:
        missing = [lacking(form.columns, sample.episode.task) for sample in samples]
        kept = [sample for sample, names in zip(samples, missing, strict=True) if not names]

        def merged(scores: Sequence[Score]) -> list[Score]:
            given = iter(scores)
            return [
                invalid(form.name, sample, _told(sample.episode.task, names)) if names else next(given)
                for sample, names in zip(samples, missing, strict=True)
            ]

        return then(form.score(kept), merged) if kept else merged(())

    return replace(form, score=score)


def _told(task: Task, names: Sequence[str]) -> str:
    there = ", ".join(sorted(columns_of(task))) or "none"
    return f"takes {', '.join(names)}, which task {task.id} does not have; its columns: {there}"
