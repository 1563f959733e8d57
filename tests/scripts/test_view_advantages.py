"""Advantages in the viewer: recorded ones, and of older records those that can be computed again."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.viewer.api import Answers
from scripts.viewer.run import ViewedRun
from tests.scripts.made_run import Made, make_run


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_run(tmp_path / "run")


def advantages(run: ViewedRun, line: int) -> dict[str, Any]:
    run.refresh_fully()
    return Answers([run]).advantages(run, line)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "file.py:ROW"])
def test_advantages_are_those_that_the_run_recorded(tmp_path: Path, algorithm: str):
    run = ViewedRun(make_run(tmp_path / "run", algorithm=algorithm).path)
    found = advantages(run, 3)
    assert found["turns"] == {"0": [0.5] + [0.75] * 7, "1": [0.75] * 4}
    assert found["source"] == "recorded by the run"
    assert "left out" in advantages(run, 18)["reason"]
    assert "held-out" in advantages(run, 1)["reason"]


def test_recorded_advantages_need_nothing_but_their_own_line(made: Made):
    path = made.path / "trajectories.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"broken\n", *lines[4:5]]))
    assert advantages(ViewedRun(made.path), 3)["turns"]["1"] == [0.75] * 4


def test_what_is_trained_without_advantages_says_so(made: Made):
    path = made.path / "trajectories.jsonl"
    rows = [json.loads(line) | {"advantages": None} for line in path.read_bytes().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "has none" in advantages(ViewedRun(made.path), 3)["reason"]


def test_advantages_of_older_records_are_computed_again(tmp_path: Path):
    run = ViewedRun(make_run(tmp_path / "run", older=True).path)
    found = advantages(run, 3)
    # Rewards 1, 0, 0, 1: mean 1/2, sample standard deviation 1/√3, so (1 - 1/2) √3 = 0.8660.
    assert [v for turn in found["turns"].values() for v in turn] == pytest.approx([0.8660] * 12, abs=1e-3)
    assert "computed again" in found["source"]
    assert "left out" in advantages(run, 18)["reason"]


@pytest.mark.parametrize("algorithm", ["grpo", "gdpo"])
@pytest.mark.parametrize("whole", [False, True])
def test_advantages_of_older_records_come_from_whole_groups_only(tmp_path: Path, algorithm: str, whole: bool):
    path = make_run(tmp_path / "run", algorithm=algorithm, older=True).path / "trajectories.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # Lines 3 to 6 are the first group of step 1, 7 to 10 the second; a line is broken, or recording stopped.
    cut = lines[:9] if whole else [*lines[:4], b"broken\n", *lines[5:]]
    path.write_bytes(b"".join(cut))
    found = advantages(ViewedRun(path.parent), 3)
    if whole and algorithm == "grpo":
        assert found["turns"]["0"] == pytest.approx([0.8660] * 8, abs=1e-3)
    else:
        group = 3 if whole else 2
        assert found["turns"] == {}
        assert f"only 3 of the 4 trajectories of group {group} can be read" in found["reason"]


def test_a_missing_group_is_missed_where_the_advantage_takes_the_whole_step(tmp_path: Path):
    path = make_run(tmp_path / "run", algorithm="gdpo", older=True).path / "trajectories.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    assert "only 1 of the step's 2 groups" in advantages(ViewedRun(path.parent), 3)["reason"]


@pytest.mark.parametrize(
    ("algorithm", "reason"), [("ppo", "need more than one step's"), ("file.py:ROW", "is not run")]
)
def test_advantages_that_cannot_be_computed_again_say_why(tmp_path: Path, algorithm: str, reason: str):
    found = advantages(ViewedRun(make_run(tmp_path / "run", algorithm=algorithm, older=True).path), 3)
    assert found["turns"] == {}
    assert reason in found["reason"]
