"""Run folders and comparisons written by hand, in the format of a recipe's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.intervals import wilson_interval

BUDGET = 1000
VERSIONS = {"whetstone": "0.1.0", "python": "3.11.9"}


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(step: int, solved: int, num_tasks: int = 100, unscored: int = 0) -> dict[str, Any]:
    low, high = wilson_interval(solved, num_tasks)
    return {
        "step": step,
        "env": "calc",
        "level": 2,
        "num_tasks": num_tasks,
        "solved": solved,
        "unscored": unscored,
        "success": solved / num_tasks,
        "low": low,
        "high": high,
    }


def make_run(run: Path, solved: dict[int, int], *, tokens: Sequence[int] = (500, 500), **config: Any) -> Path:
    """A run of len(tokens) steps, evaluated at the steps of `solved` (of 100)."""
    run.mkdir(parents=True)
    settings = {"env": "calc", "level": 2, "seed": 0, "algorithm": "grpo", "learning_rate": 1e-3} | config
    (run / "config.json").write_text(json.dumps(settings))
    (run / "manifest.json").write_text(json.dumps({"versions": VERSIONS, "source": None}))
    lines(
        run / "metrics.jsonl",
        [{"step": step, "tokens/sampled": float(n)} for step, n in enumerate(tokens, start=1)],
    )
    lines(run / "evaluations.jsonl", [evaluation(step, count) for step, count in solved.items()])
    return run


def cell(
    arm: str, seed: int, success: Sequence[float], *, setting: str = "calc:2", **more: Any
) -> dict[str, Any]:
    """A finished cell of a comparison.json, evaluated at equal distances up to the budget."""
    return {
        "arm": arm,
        "setting": setting,
        "seed": seed,
        "trial": [],
        "seconds": 60.0,
        "exit_code": 0,
        "failure": "",
        "log": [],
        "earlier_failures": 0,
        "earlier_unfinished": 0,
        "tokens": [BUDGET * i // (len(success) - 1) for i in range(len(success))],
        "success": list(success),
        "num_tokens": BUDGET,
        "num_steps": len(success) - 1,
        "num_unscored": 0,
    } | more


def comparison(
    cells: Sequence[dict[str, Any]], *, settings: Sequence[str] = ("calc:2",), **more: Any
) -> dict[str, Any]:
    """A comparison.json of `cells`."""
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    return {
        "format": 1,
        "recipe": "calc_grpo",
        "budget_tokens": BUDGET,
        "shared": ["--num-steps", "30"],
        "settings": [
            {"label": name, "env": name.split(":")[0], "level": int(name.split(":")[1]), "changes": []}
            for name in settings
        ],
        "threshold": 0.0,
        "versions": VERSIONS,
        "arms": [
            {"label": arm, "algorithm": arm, "changes": [], "description": f"{arm} in words"} for arm in arms
        ],
        "cells": list(cells),
        "tuning_cells": [],
        "diff": {"algorithm": dict.fromkeys(arms, "calc:2")},
        "commands": [
            {"command": "python -m scripts.compare", "wall_s": 60.0, "commit": "0" * 40, "machine": "2 cores"}
        ],
    } | more
