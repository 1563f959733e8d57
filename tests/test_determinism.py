"""Two exact runs are bit-equal, whatever the tools' latencies; what the clock decides stops such a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.make_base import make_base
from tests import late_calc
from tests.runs import assert_same_records, last_checkpoint, recipe, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NUM_STEPS = 4
ENV = f"{late_calc.__file__}:ENV:1"
SETTINGS = ["--determinism", "exact", "--smoke", "--num-steps", str(NUM_STEPS), "--num-minibatches", "2"]
SIZES = ["--micro-batch-size", "8", "--env", ENV, "--eval-tasks", "16"]


@pytest.fixture(scope="module")
def model() -> list[str]:
    """calc's own starting policy: one for `late_calc` would wait for its tools thousands of times."""
    return ["--model", str(make_base("calc"))]


def test_two_exact_runs_are_bit_equal_with_shuffled_tool_latencies(tmp_path: Path, model: list[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for number, run in enumerate((first, second)):
        options = [*SETTINGS, *SIZES, *model, "--run-dir", str(run)]
        code, screen = recipe(options, LATENCY=str(number))
        assert code == 0, screen
        assert "exact: again the same bits from this seed" in screen
    assert any(len(row["turns"]) > 2 for row in rows(first / "trajectories.jsonl"))  # multi-turn indeed
    waited = [[row["call_s"] for row in rows(run / "trajectories.jsonl")] for run in (first, second)]
    assert waited[0] != waited[1]
    assert_same_records(first, second)
    assert last_checkpoint(first, NUM_STEPS) == last_checkpoint(second, NUM_STEPS)


def test_an_exact_run_stops_at_a_trajectory_that_the_clock_ended(tmp_path: Path, model: list[str]) -> None:
    short = [*SETTINGS[2:], *SIZES, *model, "--max-wall-s", "0.2"]
    code, screen = recipe([*short, "--determinism", "exact", "--run-dir", str(tmp_path / "exact")])
    assert code == 3, screen
    assert "depends on the clock" in screen
    assert "--determinism fast" in screen
