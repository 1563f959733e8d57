"""What wandb and TensorBoard get of a run, read back from what they wrote; and across a resume."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rl.evaluation import Estimate, LevelResult
from rl.run_dir import RunState
from tests.tracked import Logging, tensorboard_of, wandb_files

KEY = "0123456789abcdef" * 2 + "canaries"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb writes files only, whatever the environment of the tests says."""
    for name in ("PROJECT", "ENTITY", "RUN_ID", "NAME", "DIR", "BASE_URL", "SERVICE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def evaluation(success: float, low: float | None, high: float | None) -> LevelResult:
    return LevelResult(
        env="calc",
        level=1,
        num_tasks=8,
        num_samples=1,
        num_unscored=2,
        average=Estimate(value=success, low=low, high=high),
        pass_at={},
    )


def scalars(path: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in tensorboard_of(path).Scalars(name)]


def of_training(rows: Sequence[dict[str, float]]) -> list[tuple[float, float]]:
    return [(row["step"], row["policy/loss"]) for row in rows if "policy/loss" in row]


def test_both_get_every_metric_evaluations_the_settings_and_the_name(tmp_path: Path) -> None:
    run = Logging(tmp_path / "my-run", "wandb,tensorboard")
    run.journal.track_evaluation(0, evaluation(0.25, None, None))
    run.steps([1, 2, 3])
    run.journal.track_evaluation(3, evaluation(0.5, 0.25, 0.75))
    run.finish()
    assert run.warnings == run.incidents == []

    assert scalars(run.directory.path, "policy/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(run.directory.path, "rollout/reward_mean") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert scalars(run.directory.path, "eval/success") == [(0, 0.25), (3, 0.5)]
    assert scalars(run.directory.path, "eval/success_low") == [(3, 0.25)]  # none with too few tasks
    assert scalars(run.directory.path, "eval/unscored") == [(0, 2.0), (3, 2.0)]
    (config,) = tensorboard_of(run.directory.path).Tensors("config")
    assert b"learning_rate = 0.0003" in config.tensor_proto.string_val[0]

    (kept,) = wandb_files(run.directory.path)
    assert (kept.name, kept.project, kept.code) == ("my-run", "whetstone", 0)
    assert kept.config["learning_rate"] == 0.0003
    assert of_training(kept.rows) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    own = [{n: v for n, v in row.items() if not n.startswith("_")} for row in kept.rows]
    evaluated = {"step": 3, "eval/success": 0.5, "eval/success_low": 0.25, "eval/success_high": 0.75}
    assert own[-1] == evaluated | {"eval/unscored": 2}

    kept_key = [file for file in run.directory.path.rglob("*") if file.is_file() and leaks(file)]
    assert kept_key == []


def leaks(file: Path) -> bool:
    return KEY.encode() in file.read_bytes()


def test_a_resumed_run_is_the_same_wandb_run_and_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = Logging(path, "wandb,tensorboard")
    first.steps([1, 2, 3, 4])
    first.trackers.close()  # it ended after step 4, without a verdict, and its last checkpoint is of step 2
    first.directory.close()
    checkpoint = RunState(step=2, tracker_ids=first.journal.tracker_ids)
    again = Logging(path, "wandb,tensorboard", resumed=checkpoint)
    again.steps([3, 4, 5], offset=0.5)
    again.finish()
    assert again.warnings == []

    assert scalars(path, "policy/loss") == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]
    crashed, resumed = wandb_files(path)
    assert crashed.id == resumed.id == json.loads((path / "trackers.json").read_text())["wandb"]["id"]
    assert (crashed.code, resumed.code) == (1, 0)
    assert of_training(crashed.rows) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert of_training(resumed.rows) == [(3, 3.5), (4, 4.5), (5, 5.5)]


def test_where_a_wandb_run_is_outlives_its_environment_and_a_lost_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    first = Logging(tmp_path / "run", "wandb")
    first.finish()
    place = {"wandb": {"id": "chosen", "project": "mine", "entity": None}}
    assert first.journal.tracker_ids == place
    checkpoint = RunState(step=1, tracker_ids=first.journal.tracker_ids)
    monkeypatch.setenv("WANDB_PROJECT", "other")
    monkeypatch.delenv("WANDB_RUN_ID")
    for harm in (lambda file: file.unlink(), lambda file: file.write_text("{")):
        harm(tmp_path / "run" / "trackers.json")
        again = Logging(tmp_path / "run", "", resumed=checkpoint)
        assert again.journal.tracker_ids == place
        again.finish()
    assert again.warnings[0].startswith("WARNING: trackers.json cannot be read")
    (tmp_path / "run" / "trackers.json").write_text(json.dumps(place))
    Logging(tmp_path / "run", "wandb", resumed=RunState(step=1)).finish()
    assert [(kept.id, kept.project) for kept in wandb_files(tmp_path / "run")] == [("chosen", "mine")] * 2


def test_neither_is_imported_into_the_run() -> None:
    program = "import sys, rl.tracker; print({'wandb', 'tensorboard', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
