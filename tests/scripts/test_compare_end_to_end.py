"""Two algorithms on one environment with one seed, as a user would compare them: real short runs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.finished_run import ROOT
from tests.running import HEARS_CTRL_C

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BUDGET = 800  # a smoke run samples 16 trajectories a step, some 450 tokens: it ends after the second of three


def command(out: Path, algorithms: str) -> list[str]:
    options = ["--env", "calc:1", "--seeds", "1", "--budget-tokens", str(BUDGET), "--out", str(out)]
    compare = [*HEARS_CTRL_C, "-m", "scripts.compare", "--algorithms", algorithms, *options]
    return [*compare, "--", "--smoke", "--eval-every", "1"]


def test_a_comparison_is_interrupted_goes_on_and_ends_in_a_report(tmp_path: Path):
    out = tmp_path / "comparison"
    words = command(out, "grpo,frozen=grpo+learning_rate=0")
    first = out / "cells/calc-1/grpo/seed_0"
    with (tmp_path / "screen").open("w") as screen:
        process = subprocess.Popen(words, cwd=ROOT, stdout=screen, stderr=subprocess.STDOUT)
    ends = time.monotonic() + 600
    while not (first / "cell.json").exists():  # then the second cell is on its way
        assert process.poll() is None, (tmp_path / "screen").read_text()
        assert time.monotonic() < ends
        time.sleep(0.5)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert "to go on:" in (tmp_path / "screen").read_text()
    finished = (first / "cell.json").stat().st_mtime_ns

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (first / "cell.json").stat().st_mtime_ns == finished
    assert "1 of 2 cells are finished already" in done.stdout
    assert "no interval: 1 seed of an environment" in done.stdout
    made = json.loads((out / "comparison.json").read_text())
    assert set(made["diff"]) == {"learning_rate"}
    cells = {(cell["arm"], cell["seed"]): cell for cell in made["cells"]}
    assert len(cells) == 2
    for (_, seed), cell in cells.items():
        assert cell["failure"] == ""
        assert BUDGET <= cell["num_tokens"] < 2 * BUDGET
        assert cell["tokens"][0] == 0
        assert cell["tokens"][-1] == cell["num_tokens"]
        # the same starting policy on the same tasks
        assert cell["success"][0] == cells["grpo", seed]["success"][0]
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 3


def test_what_cannot_be_compared_is_refused_before_anything_starts(tmp_path: Path):
    words = command(tmp_path / "out", "grpo,rlo")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "did you mean 'rloo'" in done.stderr
    assert not (tmp_path / "out").exists()
