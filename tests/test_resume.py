"""A run killed at any moment goes on to the same numbers, and one that is asked to end saves first."""

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

import pytest

from rl.checkpoint import checkpoints_of
from tests import killed
from tests.finished_run import ROOT
from tests.running import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NUM_STEPS = len(killed.PHASES) + 1
SETTINGS = ["--smoke", "--num-steps", str(NUM_STEPS), "--eval-tasks", "8", "--save-every", "1"]
IS_TIME = re.compile(r"time/|sync/(proof_)?seconds|tokens/per_s")


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


def last_checkpoint(run: Path) -> dict[str, str]:
    """File -> its digest, of all that holds no seconds."""
    folder = checkpoints_of(run / "checkpoints")[0]
    assert folder.name == f"step_{NUM_STEPS:06d}"
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.name not in ("run.json", "sha256.json")
    ]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_killed_in_every_phase_a_run_comes_to_the_same_weights_metrics_and_trajectories(
    tmp_path: Path,
) -> None:
    row = ["--algorithm", f"{killed.__file__}:ROW"]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    code, screen = recipe([*SETTINGS, *row, "--run-dir", str(unbroken)])
    assert code == 0, screen

    for number, phase in enumerate(killed.PHASES):
        options = ["--resume", str(broken)] if number else [*SETTINGS, *row, "--run-dir", str(broken)]
        code, screen = recipe(options, KILL=f"{phase} {number + 2}")
        assert code == -signal.SIGKILL, (phase, screen)
        steps = len(rows(broken / "metrics.jsonl"))
        assert steps == (number + 2 if phase in ("saving", "renaming", "renamed") else number + 1), phase
        saved = checkpoints_of(broken / "checkpoints")[0].name
        assert saved == f"step_{number + 2 if phase == 'renamed' else number + 1:06d}", phase
    code, screen = recipe(["--resume", str(broken)])
    assert code == 0, screen
    assert f"resumed after step {NUM_STEPS}" in screen or f"resumed after step {NUM_STEPS - 1}" in screen

    for name in ("metrics.jsonl", "consumed.jsonl", "trajectories.jsonl", "evaluations.jsonl"):
        assert without_times(rows(broken / name)) == without_times(rows(unbroken / name)), name
    assert last_checkpoint(broken) == last_checkpoint(unbroken)
    trained = [name for step in rows(broken / "consumed.jsonl") for name in step["trajectories"]]
    assert len(trained) == len(set(trained)) == NUM_STEPS * 16
    assert len(json.loads((broken / "resumes.json").read_text())) == len(killed.PHASES)


def test_a_run_that_is_asked_to_end_saves_says_how_to_go_on_and_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, ["--num-steps", "200", "--save-every", "100"]) as run:
        run.wait_for_step(200)
        ended = run.hurt(run.driver, signal.SIGTERM, timeout_s=120)
    assert ended.code == 128 + signal.SIGTERM
    assert "SIGTERM: this step is finished and saved first" in ended.errors
    (told,) = re.findall(r"Go on with: python -m recipes.calc_grpo --resume (\S+)", ended.errors)
    assert (ROOT / told).resolve() == run.path.resolve()
    (saved,) = checkpoints_of(run.path / "checkpoints")
    done = len(rows(run.path / "metrics.jsonl"))
    assert saved.name == f"step_{done:06d}"

    code, screen = recipe(["--resume", str(run.path), "--num-steps", str(done + 1)])
    assert code == 2
    assert f"num_steps: recorded 200, given {done + 1}" in screen
    damaged = saved / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, screen = recipe(["--resume", str(run.path)])
    assert code == 2
    assert "model.safetensors is damaged" in screen
    assert "no checkpoint to resume from" in screen
