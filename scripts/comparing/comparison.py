"""A comparison as data: its cells with their scores, which trial tuning chooses, and how two are merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.comparing.cells import Job, earlier_attempts, last_lines, read_outcome
from scripts.comparing.names import Arm, Changes, CompareError, Setting
from scripts.comparing.plan import Cell
from scripts.comparing.results import read_run

FORMAT = 1
COMMON = ("format", "recipe", "budget_tokens", "shared", "settings", "threshold", "versions")
"""What two comparisons must have in common to be merged."""
Entry = dict[str, Any]
"""A cell as JSON."""
Comparison = dict[str, Any]


def entry_of(cell: Cell, job: Job) -> Entry:
    """A cell that was run, as JSON; without scores for one that failed."""
    outcome = read_outcome(job)
    attempts = earlier_attempts(job)
    entry: Entry = {
        "arm": cell.arm.label,
        "setting": cell.setting.label,
        "seed": cell.seed,
        "trial": [list(change) for change in cell.trial],
        "seconds": outcome.seconds,
        "exit_code": outcome.exit_code,
        "failure": outcome.reason,
        "log": last_lines(job.log) if outcome.reason else [],
        "earlier_failures": sum(".failed-" in attempt.name for attempt in attempts),
        "earlier_unfinished": sum(".unfinished-" in attempt.name for attempt in attempts),
    }
    if outcome.reason:
        return entry
    result = read_run(job.run)
    return entry | {
        "tokens": [int(tokens) for tokens in result.curve.tokens],
        "success": [float(success) for success in result.curve.success],
        "num_tokens": result.num_tokens,
        "num_steps": result.num_steps,
        "num_unscored": result.num_unscored,
    }


def arm_entry(arm: Arm, description: str) -> Entry:
    """An arm as JSON; `description` is its row in words."""
    changes = [list(change) for change in arm.changes]
    return {"label": arm.label, "algorithm": arm.algorithm, "changes": changes, "description": description}


def setting_entry(setting: Setting) -> Entry:
    """A setting as JSON."""
    changes = [list(change) for change in setting.changes]
    return {"label": setting.label, "env": setting.env, "level": setting.level, "changes": changes}


def finished(comparison: Comparison, setting: str, arm: str) -> list[Entry]:
    """The reported cells of one arm on one setting that have a score, by seed."""
    cells = [
        cell
        for cell in comparison["cells"]
        if (cell["setting"], cell["arm"]) == (setting, arm) and not cell["failure"]
    ]
    return sorted(cells, key=lambda cell: cell["seed"])


def choose_trials(
    entries: Sequence[Entry], arms: Sequence[Arm], settings: Sequence[Setting]
) -> dict[tuple[str, str], Changes]:
    """(setting, arm) -> the trial with the best mean final success on tuning seeds; the first of equals.

    A trial with a failed run is out. CompareError where none is left.
    """
    chosen: dict[tuple[str, str], Changes] = {}
    for setting in settings:
        for arm in arms:
            means: dict[Changes, float] = {}
            mine = [e for e in entries if (e["setting"], e["arm"]) == (setting.label, arm.label)]
            for trial in dict.fromkeys(_trial(entry) for entry in mine):
                runs = [entry for entry in mine if _trial(entry) == trial]
                if not any(run["failure"] for run in runs):
                    means[trial] = float(np.mean([run["success"][-1] for run in runs]))
            if not means:
                raise CompareError(
                    f"every tuning trial of {arm.label} on {setting.label} failed; see the logs under "
                    "tuning/, or leave the arm out"
                )
            chosen[setting.label, arm.label] = max(means, key=lambda trial: means[trial])
    return chosen


def _trial(entry: Entry) -> Changes:
    return tuple((field, value) for field, value in entry["trial"])


def merge(ours: Comparison, path: Path) -> Comparison:
    """`ours` with the arms and cells of another comparison.json.

    Raises:
        CompareError: it is none, its budget, settings, shared options or versions differ, an arm of one label
            is another arm there, or a cell is in both.
    """
    try:
        theirs = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CompareError(f"--merge {path}: cannot be read ({error}); expected a comparison.json") from error
    if not isinstance(theirs, dict) or theirs.get("format") != FORMAT:
        raise CompareError(f"--merge {path}: expected a comparison.json of format {FORMAT}")
    differ = [name for name in COMMON if ours[name] != theirs[name]]
    if differ:
        found = "; ".join(f"{name}: {ours[name]!r} here, {theirs[name]!r} there" for name in differ)
        raise CompareError(f"--merge {path}: not the same comparison ({found})")
    known: Mapping[str, Entry] = {arm["label"]: arm for arm in ours["arms"]}
    for arm in theirs["arms"]:
        if known.get(arm["label"], arm) != arm:
            raise CompareError(
                f"--merge {path}: {arm['label']} is another arm there; name it otherwise, as "
                f"new={arm['label']}"
            )
    keys = {_key(cell) for cell in ours["cells"]}
    twice = [_key(cell) for cell in theirs["cells"] if _key(cell) in keys]
    if twice:
        setting, name, seed = twice[0]
        raise CompareError(
            f"--merge {path}: {name} on {setting}, seed {seed} is in both; leave it out of one"
        )
    return {
        **ours,
        "arms": [*ours["arms"], *(arm for arm in theirs["arms"] if arm["label"] not in known)],
        "cells": [*ours["cells"], *theirs["cells"]],
        "tuning_cells": [*ours["tuning_cells"], *theirs["tuning_cells"]],
        "commands": [*ours["commands"], *theirs["commands"]],
    }


def _key(cell: Entry) -> tuple[str, str, int]:
    return cell["setting"], cell["arm"], cell["seed"]
