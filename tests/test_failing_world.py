"""A world that fails under a real run: the run goes on with the rest, or ends and says what failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.make_base import make_base
from tests.finished_run import FinishedRun, run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run_in(path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> FinishedRun:
    """A short run on calc's own starting policy, which a world that fails could not have made."""
    monkeypatch.setenv("FAILS", fails)
    model = make_base("calc", level=1, seed=0)
    return run_recipe(path, ["--env", "tests/failing_calc.py:ENV", "--model", str(model)], timeout_s=500)


def test_a_run_goes_on_with_what_the_world_left_it_and_says_what_it_took(tmp_path, monkeypatch) -> None:
    run = run_in(tmp_path / "run", "some", monkeypatch)
    assert run.code == 0, run.screen
    assert "failed by the world: SandboxError" in run.screen
    assert "tried again: " in run.screen
    for step in run.metrics:
        failed = step.get("error/SandboxError", 0.0)
        assert failed == step.get("dropped/error/SandboxError", 0.0) == step.get("retry/SandboxError", 0.0)
        assert step.get("dropped/retried", 0.0) == failed + step.get("retry/ToolServerError", 0.0)
        for unit in ("tokens", "trajectories"):
            parts = (step[f"{unit}/{part}"] for part in ("trained", "masked", "dropped"))
            assert step[f"rollout/sampled_{unit}"] == step[f"{unit}/sampled"] == sum(parts)
    assert sum(step.get("error/SandboxError", 0.0) for step in run.metrics) > 0
    trained = [record for record in run.records if record.split == "train"]
    saved = [record.trajectory for record in trained if record.trajectory.attempts]
    assert {t.error.kind if t.error else "" for t in saved} == {"", "SandboxError"}
    for record in trained:
        assert (record.advantages is None) == (record.trajectory.score.value is None)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (
            "after 0",
            "STOPPED: the probe of 2 groups gave no trajectory that could be compared: SandboxError 8;",
        ),
        # 16 episodes of the probes and 32 of the evaluation hold
        pytest.param(
            "after 60",
            "STOPPED: step 1: none of the 16 trajectories has a score, there is nothing to learn from: ",
            marks=pytest.mark.extra,
        ),
    ],
)
def test_a_run_whose_world_is_gone_ends_and_names_it(tmp_path, monkeypatch, fails, message) -> None:
    run = run_in(tmp_path / "run", fails, monkeypatch)
    assert run.code == 3, run.screen
    (line,) = [line for line in run.screen.splitlines() if line.startswith("STOPPED: ")]
    assert line.startswith(message)
    assert "SandboxError: no space left in /tmp" in line
    assert "Traceback" not in run.screen
