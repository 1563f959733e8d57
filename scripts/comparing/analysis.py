"""What the cells of a comparison say together: every number of the report that is of more than one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rl.aggregates import (
    Curve,
    Estimate,
    area_under_curve,
    bootstrap,
    median_time,
    probability_of_improvement,
    time_to_threshold,
)
from scripts.comparing.comparison import Comparison, Entry, cell_of, finished
from scripts.comparing.sources import NUM_NAMES, Manifests, source_differences

NEAR = 0.05
"""A level is saturated for arms that end within this of 1, or of 0 (see `_saturated`)."""
METRICS = {"final": "final success", "auc": "mean success over the budget (AUC)"}
"""The two scores of a run, in words."""
ALL = "all"
"""The setting's name for all of them together."""


def curve_of(entry: Entry) -> Curve:
    """The learning curve of a finished cell."""
    return Curve(np.array(entry["tokens"], dtype=np.float64), np.array(entry["success"], dtype=np.float64))


def score(entry: Entry, metric: str, budget: float) -> float | None:
    """One score of a finished cell: `final` success, or `auc`, None for a curve that is not of the budget."""
    return area_under_curve(curve_of(entry), budget) if metric == "auc" else float(entry["success"][-1])


def scores(comparison: Comparison, arm: str, settings: Sequence[str], metric: str) -> dict[str, np.ndarray]:
    """Scores of an arm, setting -> (num_seeds,)."""
    found = {
        setting: [
            score(cell, metric, comparison["budget_tokens"]) for cell in finished(comparison, setting, arm)
        ]
        for setting in settings
    }
    return {name: np.array([x for x in values if x is not None]) for name, values in found.items()}


def paired(comparison: Comparison, arm: str, other: str, settings: Sequence[str]) -> Estimate:
    """How probably `arm` ends above `other` on one setting and seed; cells that failed pair with none."""
    ours: dict[str, np.ndarray] = {}
    theirs: dict[str, np.ndarray] = {}
    for setting in settings:
        left, right = (
            {cell["seed"]: cell["success"][-1] for cell in finished(comparison, setting, name)}
            for name in (arm, other)
        )
        seeds = sorted(left.keys() & right.keys())
        ours[setting] = np.array([left[seed] for seed in seeds])
        theirs[setting] = np.array([right[seed] for seed in seeds])
    return probability_of_improvement(ours, theirs)


def threshold_of(comparison: Comparison, setting: str) -> float | None:
    """Success that counts as learned: the given one, or halfway from the starting policies' mean to 1."""
    if comparison["threshold"]:
        return comparison["threshold"]
    starts = [c["success"][0] for c in comparison["cells"] if c["setting"] == setting and not c["failure"]]
    return (1 + float(np.mean(starts))) / 2 if starts else None


def analyse(comparison: Comparison) -> dict[str, Any]:
    """Every number of the report that is of more than one cell."""
    arms = [arm["label"] for arm in comparison["arms"]]
    settings = [setting["label"] for setting in comparison["settings"]]
    views = {setting: [setting] for setting in settings} | ({ALL: settings} if len(settings) > 1 else {})
    return {
        "seeds": {
            metric: {
                setting: {arm: scores(comparison, arm, [setting], metric)[setting].tolist() for arm in arms}
                for setting in settings
            }
            for metric in METRICS
        },
        "scores": {
            metric: {
                view: {arm: bootstrap(scores(comparison, arm, inside, metric)) for arm in arms}
                for view, inside in views.items()
            }
            for metric in METRICS
        },
        "improvement": {
            view: {
                arm: {other: paired(comparison, arm, other, inside) for other in arms if other != arm}
                for arm in arms
            }
            for view, inside in views.items()
        },
        "threshold": {setting: _reaching(comparison, setting, arms) for setting in settings},
        "cost": {arm: _cost(comparison, arm) for arm in arms},
        "warnings": list(warnings(comparison)),
    }


def _reaching(comparison: Comparison, setting: str, arms: Sequence[str]) -> dict[str, Any]:
    threshold = threshold_of(comparison, setting)
    times = {
        arm: [time_to_threshold(curve_of(cell), threshold) for cell in finished(comparison, setting, arm)]
        for arm in arms
        if threshold is not None
    }
    return {
        "success": threshold,
        "arms": {
            arm: {
                "reached": sum(time is not None for time in found),
                "seeds": len(found),
                "median_tokens": median_time(found),
            }
            for arm, found in times.items()
        },
    }


def _cost(comparison: Comparison, arm: str) -> dict[str, float]:
    """Spent on reported cells and on tuning, on attempts that failed or were cut off as well."""
    reported = [cell for cell in comparison["cells"] if cell["arm"] == arm]
    tuning = [cell for cell in comparison["tuning_cells"] if cell["arm"] == arm]
    return {
        **_spent(reported),
        "unscored": sum(cell.get("num_unscored", 0) for cell in reported),
        **{f"tuning_{name}": number for name, number in _spent(tuning).items()},
    }


def _spent(cells: Sequence[Entry]) -> dict[str, float]:
    return {
        "tokens": sum(cell.get("num_tokens", 0) + cell.get("earlier_tokens", 0) for cell in cells),
        "seconds": sum(cell["seconds"] + cell.get("earlier_seconds", 0) for cell in cells),
        "cells": len(cells),
        "failures": sum(bool(cell["failure"]) + cell["earlier_failures"] for cell in cells),
    }


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before the scores: failures, budgets not spent, levels that tell nothing."""
    found = []
    failures = [cell for cell in comparison["cells"] if cell["failure"]]
    if failures:
        found.append(
            f"{len(failures)} of {len(comparison['cells'])} cells failed and have no score "
            f"({_reasons(failures)}); what is left may be the luckier ones"
        )
    trials = [cell for cell in comparison["tuning_cells"] if cell["failure"]]
    if trials:
        found.append(
            f"{len(trials)} of {len(comparison['tuning_cells'])} tuning runs failed, and their trials could "
            f"not be chosen ({_reasons(trials)})"
        )
    found += [
        f"the runs of {path} do not say their settings, so whether they differ in more than was declared is "
        "not known"
        for path in comparison.get("unchecked", ())
    ]
    found += [
        f"runs were not made by the same code: {text}" for text in source_differences(_made(comparison))
    ]
    for setting in (setting["label"] for setting in comparison["settings"]):
        finals = {
            arm["label"]: float(np.mean([cell["success"][-1] for cell in cells]))
            for arm in comparison["arms"]
            if (cells := finished(comparison, setting, arm["label"]))
        }
        found += _saturated(setting, finals)
    return found


def _saturated(setting: str, finals: Mapping[str, float]) -> Iterator[str]:
    """What a level cannot tell apart, by each arm's mean final success.

    Where every arm ends near an end, the level says nothing. Where two or more do, it says nothing of these
    among each other, at 1 as at 0: two that never left 0 may be as far apart as two that reached 1. One arm
    alone at an end is told apart from the others, and that is a result.
    """
    for limit, harder in ((1.0, "a harder"), (0.0, "an easier")):
        near = [arm for arm, final in finals.items() if abs(final - limit) <= NEAR + 1e-9]
        if near and len(near) == len(finals):
            yield (
                f"{setting} is saturated: every arm ends within {NEAR:g} of {limit:g}, so it cannot tell "
                f"them apart; take {harder} level"
            )
        elif len(near) > 1:
            yield (
                f"{setting} is saturated for {', '.join(near)}: they end within {NEAR:g} of {limit:g}, so it "
                f"cannot tell these apart from each other; take {harder} level"
            )


def _reasons(failures: Sequence[Entry]) -> str:
    """The first failures in words, and how many more there are."""
    said = [
        f"{cell['arm']} on {cell['setting']}, seed {cell['seed']}: {cell['failure']}" for cell in failures
    ]
    more = len(said) - NUM_NAMES
    return "; ".join([*said[:NUM_NAMES], *([f"{more} more"] if more > 0 else [])])


def _made(comparison: Comparison) -> Manifests:
    """What the cells say that they were made of; nothing where they are older and do not."""
    return [
        (cell_of(entry, comparison), {**entry["config"], "code": entry["code"], "inputs": entry["inputs"]})
        for entry in (*comparison["cells"], *comparison["tuning_cells"])
        if "code" in entry
    ]
