"""What one run left behind, as a learning curve: evaluations.jsonl beside the tokens of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl.aggregates import Curve

EVALUATION = ("step", "num_tasks", "solved", "unscored", "success", "low", "high")
"""What a line of evaluations.jsonl must have; `env` and `level` as well."""


SPENT = ("tokens/sampled", "rollout/dropped_tokens")
"""Metrics that make up what a step sampled: dynamic sampling pays for the groups that it drops, too."""


class RunError(ValueError):
    """A run's folder does not hold what a comparison needs; the message names file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run. `curve` has a point an evaluation; `num_unscored` is of all of them together."""

    curve: Curve
    num_tokens: int
    num_steps: int
    num_unscored: int
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def start(self) -> float:
        """Success of the starting policy."""
        return float(self.curve.success[0])

    @property
    def final(self) -> float:
        """Success at the last evaluation."""
        return float(self.curve.success[-1])


def read_run(run: Path) -> RunResult:
    """Read a finished run. RunError where a file is missing, broken, or the last step was not evaluated."""
    config, manifest = read_json(run / "config.json"), read_json(run / "manifest.json")
    steps = [(line["step"], _sampled(line)) for line in _lines(run / "metrics.jsonl", ("step",))]
    evaluations = [
        line
        for line in _lines(run / "evaluations.jsonl", EVALUATION)
        if (line.get("env"), line.get("level")) == (config.get("env"), config.get("level"))
    ]
    tokens = {0: 0.0}
    for step, sampled in steps:
        tokens[step] = tokens[max(tokens)] + sampled
    last = max(tokens)
    points = {line["step"]: line for line in evaluations}
    unknown = sorted(set(points) - set(tokens))
    if unknown:
        raise RunError(f"{run}: evaluations.jsonl has step {unknown[0]}, metrics.jsonl ends at step {last}")
    for step, policy in ((0, "starting"), (last, "trained")):
        if step not in points:
            raise RunError(
                f"{run}: the {policy} policy (step {step}) was not evaluated on {config.get('env')} level "
                f"{config.get('level')}; evaluated steps: {', '.join(map(str, sorted(points))) or 'none'}"
            )
    if last == 0:
        raise RunError(f"{run}: metrics.jsonl has no step")
    order = sorted(points)
    return RunResult(
        curve=Curve(
            np.array([tokens[step] for step in order]), np.array([points[step]["success"] for step in order])
        ),
        num_tokens=int(tokens[last]),
        num_steps=last,
        num_unscored=sum(line["unscored"] for line in points.values()),
        config=config,
        manifest=manifest,
    )


def spent_tokens(run: Path) -> int:
    """What a run sampled as far as it got; a last line that was cut off does not count."""
    file = run / "metrics.jsonl"
    spent = 0.0
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            spent += _sampled(json.loads(text))
        except json.JSONDecodeError:
            break
    return int(spent)


def _sampled(line: Mapping[str, Any]) -> float:
    return sum(line.get(name, 0.0) for name in SPENT)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. RunError where there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path} is missing; the run did not get that far") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__}; expected an object")
    return value


def _lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        texts = path.read_text().splitlines()
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: the run ended before it was written, or is from an older version"
        ) from None
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise RunError(f"{path}:{number} is not JSON: {error.msg}") from None
        absent = [name for name in needed if name not in line]
        if absent:
            raise RunError(f"{path}:{number} has no {', '.join(absent)}; expected {', '.join(needed)}")
        lines.append(line)
    return lines
