"""A run whose policy writes code: graded in the sandbox, end to end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from envs.tasks.coding import score
from tests.finished_run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_grades_what_its_policy_wrote_in_the_sandbox(tmp_path: Path) -> None:
    """It makes its own starting policy, which takes most of the time."""
    finished = run_recipe(tmp_path / "run", ["--env", "coding:0"], timeout_s=850)
    assert finished.code == 0, finished.screen
    assert "SMOKE RUN SOUND" in finished.screen
    assert json.loads((finished.path / "manifest.json").read_text())["sandbox"]["level"] >= 2
    assert all(step["reward/errors"] == 0 for step in finished.metrics)
    trajectories = [record.trajectory for record in finished.records]
    assert {trajectory.score.value for trajectory in trajectories} == {0.0, 1.0}
    for trajectory in trajectories[:20]:  # a grade is a function of the episode: it comes out again
        assert asyncio.run(score(trajectory.episode)) == trajectory.score
