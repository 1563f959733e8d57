"""A comparison as data: its cells with their scores, and which trial tuning chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.comparing.cells import Job, earlier_attempts, last_lines, read_outcome, spent_before
from scripts.comparing.names import Arm, Changes, CompareError, Setting
from scripts.comparing.plan import PLACE, Cell
from scripts.comparing.results import read_run, spent_tokens

FORMAT = 1
Entry = dict[str, Any]
"""A cell as JSON."""
Comparison = dict[str, Any]


def entry_of(cell: Cell, job: Job, budget_tokens: int) -> Entry:
    """A cell that was run, as JSON; one that failed has no curve."""
    outcome = read_outcome(job)
    attempts = earlier_attempts(job)
    earlier_seconds, earlier_tokens = spent_before(job)
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
        "earlier_seconds": earlier_seconds,
        "earlier_tokens": earlier_tokens,
        "num_tokens": spent_tokens(job.run),
    }
    if outcome.reason:
        return entry
    result = read_run(job.run)
    entry |= {
        "tokens": [int(tokens) for tokens in result.curve.tokens],
        "success": [float(success) for success in result.curve.success],
        "num_tokens": result.num_tokens,
        "num_steps": result.num_steps,
        "num_unscored": result.num_unscored,
        "config": portable(result.config),
        "code": dict(result.manifest.get("code") or {}),
        "inputs": dict(result.manifest.get("inputs") or {}),
    }
    return short_fails(entry, budget_tokens)


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as it is on any machine: without the place of its run, and with ~ for the home directory."""
    home = f"{Path.home()}/"
    return {
        name: f"~/{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(home) else value
        for name, value in config.items()
        if name not in PLACE
    }


def short_fails(entry: Entry, budget_tokens: int) -> Entry:
    """`entry`, counted as failed where the run ended before it had spent the budget.

    Its last success is not that of the budget: beside the others it would make an algorithm look worse, or
    better where success falls again. Its curve stays in the data.
    """
    if entry["failure"] or entry["num_tokens"] >= budget_tokens:
        return entry
    reason = (
        f"num_steps ended it at {entry['num_tokens']:,} tokens of the budget of {budget_tokens:,}; raise "
        "num_steps"
    )
    return entry | {"failure": reason}


def arm_entry(arm: Arm, description: str) -> Entry:
    """An arm as JSON; `description` is its row in words."""
    changes = [list(change) for change in arm.changes]
    return {"label": arm.label, "algorithm": arm.algorithm, "changes": changes, "description": description}


def setting_entry(setting: Setting) -> Entry:
    """A setting as JSON."""
    changes = [list(change) for change in setting.changes]
    return {"label": setting.label, "env": setting.env, "level": setting.level, "changes": changes}


def cell_of(entry: Entry, comparison: Comparison) -> Cell:
    """The cell whose JSON `entry` is."""
    arm = next(arm for arm in comparison["arms"] if arm["label"] == entry["arm"])
    setting = next(setting for setting in comparison["settings"] if setting["label"] == entry["setting"])
    return Cell(
        arm=Arm(label=arm["label"], algorithm=arm["algorithm"], changes=_changes(arm.get("changes", ()))),
        setting=Setting(
            label=setting["label"],
            env=setting["env"],
            level=setting["level"],
            changes=_changes(setting.get("changes", ())),
        ),
        seed=entry["seed"],
        trial=_changes(entry["trial"]),
    )


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
                    f"every tuning trial of {arm.label} on {setting.label} failed ({mine[0]['failure']}); "
                    "see the logs under tuning/, or leave the arm out"
                )
            chosen[setting.label, arm.label] = max(means, key=lambda trial: means[trial])
    return chosen


def _trial(entry: Entry) -> Changes:
    return _changes(entry["trial"])


def _changes(pairs: Sequence[Sequence[str]]) -> Changes:
    return tuple((field, value) for field, value in pairs)
