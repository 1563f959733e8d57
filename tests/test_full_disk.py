"""A disk that fills in the middle of a run, the driver's or the learner's, costs no number of it."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import psutil
import pytest

from tests.running import RunningRun, running
from tests.runs import assert_same_records, last_checkpoint, recipe

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(1800)]
NUM_STEPS = 6
SETTINGS = ["--determinism", "exact", "--num-steps", str(NUM_STEPS), "--eval-tasks", "8", "--save-every", "1"]


def fill_disk_of(process: psutil.Process, num_bytes: int) -> None:
    """What it writes beyond `num_bytes` into a file fails from now on, as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def ended(run: RunningRun) -> tuple[int, str]:
    ends = time.monotonic() + 200
    while run.driver.poll() is None and time.monotonic() < ends:
        time.sleep(0.2)
    return run.driver.returncode, run.errors


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    code, screen = recipe(["--smoke", *SETTINGS, "--run-dir", str(path)])
    assert code == 0, screen
    return path


@pytest.mark.parametrize("whose", ["driver", "learner"])
def test_a_run_whose_disk_fills_says_so_and_goes_on_to_the_same_numbers(
    tmp_path: Path, unbroken: Path, whose: str
) -> None:
    with running(tmp_path, SETTINGS) as run:
        run.wait_for_step(200)
        while not (run.path / "checkpoints" / "step_000001").exists():
            assert run.driver.poll() is None, run.errors
            time.sleep(0.05)
        # Its trajectories, or the next checkpoint; what it says on its screen is shorter.
        size = (run.path / "trajectories.jsonl").stat().st_size
        fill_disk_of(run.driver if whose == "driver" else run.process("ray::Learner"), size)
        code, errors = ended(run)
    assert code == 3, errors
    assert "STOPPED: " in errors
    assert "Go on with: python -m recipes.calc_grpo --resume" in errors
    code, screen = recipe(["--resume", str(run.path)])
    assert code == 0, screen
    assert_same_records(run.path, unbroken)
    assert last_checkpoint(run.path, NUM_STEPS) == last_checkpoint(unbroken, NUM_STEPS)
