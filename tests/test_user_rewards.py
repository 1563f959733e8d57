"""Reward functions of other libraries train calc as they are; hostile ones end no run. Real short runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.metrics import check_names
from tests.finished_run import ROOT, run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FILES = Path("tests/rewards/user_rewards")
SHORT = ("--num-steps", "2", "--eval-tasks", "8")


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("trl.py:exact", "reward/step"),  # verl's form is that of the hostile one below
        pytest.param("trl.py:some", "", marks=pytest.mark.extra),
        pytest.param("trl.py:think_format_reward", "", marks=pytest.mark.extra),
        pytest.param("trl.py:overlong", "", marks=pytest.mark.extra),
        pytest.param("verl.py:compute_score", "reward/turns", marks=pytest.mark.extra),
        pytest.param("verl.py:compute_scores", "reward/turns", marks=pytest.mark.extra),
        pytest.param("openrlhf.py:reward_func", "reward/scores", marks=pytest.mark.extra),
    ],
)
def test_a_function_written_for_another_library_trains_unchanged(
    tmp_path: Path, function: str, part: str
) -> None:
    finished = run_recipe(tmp_path / "run", ["--reward", f"{FILES}/{function}", *SHORT], timeout_s=580)
    assert finished.code == 0, finished.screen
    assert "SMOKE RUN SOUND" in finished.screen
    assert len(finished.metrics) == 2
    for step in finished.metrics:
        check_names(name for name in step if name != "step")
        assert step["reward/errors"] == 0
        assert "rollout/success" in step  # the environment's own
        assert part in step or not part
    assert "reward errors" not in finished.screen
    scored = [r.trajectory for r in finished.records if r.trajectory.score.value is not None]
    right = {t.score.value == t.score.success for t in scored}
    assert right == {True} or "exact" not in function


HOSTILE = """
from tests.rewards.user_rewards.hostile import DEEDS

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    # each deed befalls the answers of one length, so the others of a group are scored as ever
    deeds = ["raise", "nan", "alarm", "exit", "hard_exit", "segfault", "hang"]
    place = len(solution_str) % 12
    return DEEDS[deeds[place]]() if place < len(deeds) else float(ground_truth in solution_str)
"""


def test_a_reward_that_hangs_raises_exits_and_crashes_ends_no_run(tmp_path: Path) -> None:
    file = tmp_path / "hostile_reward.py"
    file.write_text(HOSTILE)
    options = [
        "--reward",
        f"{file}:compute_score",
        "--reward-timeout-s",
        "1",
        "--reward-workers",
        "3",
        *SHORT,
    ]
    finished = run_recipe(tmp_path / "run", options, timeout_s=580)
    assert finished.code == 0, finished.screen
    assert "SMOKE RUN SOUND" in finished.screen
    errors = [
        json.loads(line) for line in (tmp_path / "run" / "reward_errors.jsonl").read_text().splitlines()
    ]
    trained = [error for error in errors if error["split"] == "train"]
    assert sum(step["reward/errors"] for step in finished.metrics) == len(trained) > 0
    assert {error["kind"] for error in errors} > {"exception", "crashed"}
    unscored = {r.trajectory.id for r in finished.records if r.trajectory.score.value is None}
    assert {error["trajectory"] for error in errors} == unscored
    assert "reward errors, train step 1: " in finished.screen


def test_a_reward_of_the_wrong_length_stops_the_run_with_what_was_expected(tmp_path: Path) -> None:
    file = tmp_path / "short.py"
    file.write_text("def first(completions, **kwargs):\n    return [1.0]\n")
    finished = run_recipe(tmp_path / "run", ["--reward", f"{file}:first", *SHORT], timeout_s=580)
    assert finished.code == 3, finished.screen
    assert "reward first returned 1 results, expected 4" in finished.screen
    assert "Traceback" not in finished.screen


def test_what_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import json\nROWS = json.loads('{')\n")
    finished = run_recipe(tmp_path / "run", ["--reward", f"{file}:f"])
    assert finished.code == 2
    assert 'broken.py", line 2, in <module>\n    ROWS = json.loads' in finished.screen
    assert str(ROOT / "rewards") not in finished.screen
    assert not (tmp_path / "run").exists()
