"""A run killed at any moment goes on to the same numbers, and one that is asked to end saves first."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from rl.checkpoint import checkpoints_of
from tests import killed
from tests.finished_run import ROOT
from tests.running import running
from tests.runs import assert_same_records, last_checkpoint, recipe, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    "phases",
    [
        pytest.param(("update", "saving", "renamed"), id="three"),
        pytest.param(killed.PHASES, id="every", marks=pytest.mark.extra),
    ],
)
def test_killed_in_these_phases_a_run_comes_to_the_same_weights_metrics_and_trajectories(
    tmp_path: Path, phases: tuple[str, ...]
) -> None:
    num_steps = len(phases) + 1
    settings = ["--algorithm", f"{killed.__file__}:ROW", "--determinism", "exact", "--smoke"]
    settings += ["--num-steps", str(num_steps), "--eval-tasks", "8", "--save-every", "1"]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    code, screen = recipe([*settings, "--run-dir", str(unbroken)])
    assert code == 0, screen

    for number, phase in enumerate(phases):
        options = ["--resume", str(broken)] if number else [*settings, "--run-dir", str(broken)]
        code, screen = recipe(options, KILL=f"{phase} {number + 2}")
        assert code == -signal.SIGKILL, (phase, screen)
        steps = len(rows(broken / "metrics.jsonl"))
        assert steps == (number + 2 if phase in ("saving", "renaming", "renamed") else number + 1), phase
        saved = checkpoints_of(broken / "checkpoints")[0].name
        assert saved == f"step_{number + 2 if phase == 'renamed' else number + 1:06d}", phase
    code, screen = recipe(["--resume", str(broken)])
    assert code == 0, screen
    assert f"resumed after step {num_steps}" in screen or f"resumed after step {num_steps - 1}" in screen

    assert_same_records(broken, unbroken)
    assert last_checkpoint(broken, num_steps) == last_checkpoint(unbroken, num_steps)
    trained = [name for step in rows(broken / "consumed.jsonl") for name in step["trajectories"]]
    assert len(trained) == len(set(trained)) == num_steps * 16
    assert len(json.loads((broken / "resumes.json").read_text())) == len(phases)


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
