"""A budget of sampled tokens ends training: short real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.finished_run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_training_ends_after_the_first_step_that_spends_the_budget(tmp_path: Path) -> None:
    # a smoke run samples 16 trajectories a step, some 450 tokens, and has three steps
    finished = run_recipe(tmp_path / "run", ["--budget-tokens", "600"])
    assert finished.code == 0, finished.screen
    sampled = [step["tokens/sampled"] for step in finished.metrics]
    assert len(sampled) == 2
    assert sampled[0] < 600 <= sum(sampled)
    assert "budget_tokens = 600 spent" in finished.screen
    assert max(folder.name for folder in (finished.path / "checkpoints").iterdir()) == "step_000002"
    state = json.loads((finished.path / "state.json").read_text())
    assert (state["step"], state["num_sampled_tokens"]) == (2, sum(sampled))
    assert {record.step for record in finished.records if record.split == "eval"} == {0, 2}


@pytest.mark.extra
def test_a_budget_that_ends_nothing_is_said(tmp_path: Path) -> None:
    finished = run_recipe(tmp_path / "run", ["--budget-tokens", "1000000", "--num-steps", "1"])
    assert finished.code == 0, finished.screen
    assert "budget_tokens = 1,000,000 was not reached" in " ".join(finished.screen.split())
    assert len(finished.metrics) == 1
