"""A recipe's short real run, in a process of its own, and what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rollout.record import Record, read_records

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class FinishedRun:
    path: Path
    code: int
    screen: str

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def records(self) -> list[Record]:
        return list(read_records(self.path / "trajectories.jsonl"))


def run_recipe(
    path: Path, options: Sequence[str], *, recipe: str = "calc_grpo", timeout_s: float = 280
) -> FinishedRun:
    """`--smoke` of a recipe into `path`, as a user would run it."""
    command = [sys.executable, "-m", f"recipes.{recipe}", "--smoke", "--run-dir", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    return FinishedRun(path, done.returncode, done.stdout + done.stderr)
