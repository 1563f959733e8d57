"""What two whole runs are compared by: every number but wall seconds, and the digests of what was saved."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.checkpoint import checkpoints_of
from tests.finished_run import ROOT

IS_TIME = re.compile(r"time/|sync/(proof_)?seconds|tokens/per_s")
RECORDS = ("metrics.jsonl", "consumed.jsonl", "trajectories.jsonl", "evaluations.jsonl")


def recipe(options: Sequence[str], **environment: str) -> tuple[int, str]:
    """A run of the recipe: its exit code and screen."""
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.calc_grpo", *options],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        screen, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        # Its actors hold the pipe a little longer than a killed driver lives, and no longer.
        os.killpg(process.pid, signal.SIGKILL)
        screen, _ = process.communicate(timeout=30)
    return process.returncode, screen


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(value: Any) -> Any:
    """Every number but wall seconds."""
    if isinstance(value, dict):
        return {
            name: without_times(inner)
            for name, inner in value.items()
            if not IS_TIME.match(name) and not name.endswith("_s")
        }
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def assert_same_records(run: Path, other: Path) -> None:
    """Metrics, consumed ids, trajectories and evaluations of two runs are equal to the bit."""
    for name in RECORDS:
        assert without_times(rows(run / name)) == without_times(rows(other / name)), name


def last_checkpoint(run: Path, num_steps: int) -> dict[str, str]:
    """File -> its digest, of all that holds no seconds, in the checkpoint of step `num_steps`."""
    folder = checkpoints_of(run / "checkpoints")[0]
    assert folder.name == f"step_{num_steps:06d}"
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.name not in ("run.json", "sha256.json")
    ]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
