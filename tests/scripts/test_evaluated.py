"""Which policy scripts.evaluate takes, and what is known of it before the first episode."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from recipes.stopping import STOPPED
from rl.checkpoint import HASHES, sha256
from rl.config import Config
from rl.evaluation import Evaluation, EvaluationError, TaskOutcome
from rollout.collector import GroupRequest
from rollout.failures import PeerFailedError
from rollout.trajectory import TrajectoryGroup
from rollout.workers import RemoteRollouts
from scripts._evaluate_options import Options
from scripts._evaluate_plan import make_plan
from scripts._evaluate_report import Report
from scripts._evaluated import Source, by_limits, find_policy
from scripts.evaluate import collect, main, warn
from scripts.viewer.run import open_runs
from tests.chat_server import completion, serving
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tied=True)


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run directory with checkpoints after steps 2 and 4."""
    folder = tmp_path / "run"
    for step in (2, 4):
        checkpoint = folder / "checkpoints" / f"step_{step:06}"
        shutil.copytree(model, checkpoint)
        hashes = {file.name: sha256(file) for file in checkpoint.iterdir()}
        (checkpoint / HASHES).write_text(json.dumps(hashes))
    (folder / "config.json").write_text(json.dumps(asdict(Config())))
    return folder


def test_a_runs_reward_runs_under_the_runs_python_unless_another_is_named(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(episode): ...")
    recorded = Config(reward=f"{file}:f", reward_python=sys.executable)
    (run / "config.json").write_text(json.dumps(asdict(recorded)))

    def python_of(**given: str) -> str:
        plan = make_plan(Options(model=str(run), num_tasks=20, **given))
        assert plan.config(plan.cells[0]).reward_python == plan.cells[0].reward_python
        return plan.cells[0].reward_python

    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert python_of() == sys.executable
    assert python_of(reward_python=str(other)) == str(other)
    assert python_of(reward=f"{file}:f") == ""
    with pytest.raises(EvaluationError, match=r"reward_python = .* has no effect"):
        python_of(reward="", reward_python=str(other))


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_runs_newest_sound_checkpoint_is_evaluated_and_the_damaged_one_is_told(run: Path, capsys) -> None:
    assert find_policy(str(run)).step == 4
    flip_a_bit(run / "checkpoints" / "step_000004")
    plan = make_plan(Options(model=str(run), num_tasks=20))
    assert plan.recorded_policy()["step"] == 2
    warn(plan)
    said = capsys.readouterr().err
    assert "WARNING" in said
    assert "step_000002 is evaluated" in said
    assert "step_000004: model.safetensors is damaged" in said


def test_a_run_without_a_sound_checkpoint_is_refused(run: Path) -> None:
    for step in (2, 4):
        flip_a_bit(run / "checkpoints" / f"step_{step:06}")
    with pytest.raises(
        EvaluationError, match=r"(?s)without a sound checkpoint.*step_000002: model.safetensors is dam"
    ):
        find_policy(str(run))


def test_a_damaged_checkpoint_that_is_named_is_told(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step_000004"
    assert find_policy(str(checkpoint)).warnings == ()
    flip_a_bit(checkpoint)
    (problem,) = find_policy(str(checkpoint)).warnings
    assert "model.safetensors is damaged" in problem


def test_a_checkpoint_that_is_pruned_meanwhile_has_its_digest(run: Path) -> None:
    """A run that goes on keeps its newest checkpoints only; the digest is that of what was found."""
    plan = make_plan(Options(model=str(run), num_tasks=20))
    digest = find_policy(str(run)).facts()["weights_blake2b"]
    shutil.rmtree(run / "checkpoints")
    assert len(digest) == 32
    assert plan.recorded_policy()["weights_blake2b"] == digest


def test_a_model_of_the_hub_is_recorded_with_its_commit(tmp_path: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    source = Source(name="some/model", model="some/model", run={})
    assert source.facts()["revision"] is None  # not loaded yet
    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--some--model"
    shutil.copytree(model, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    assert source.facts()["revision"] == commit
    assert find_policy(str(model)).facts()["revision"] is None


def test_each_level_has_the_turns_that_it_takes(run: Path) -> None:
    """A run on calc has 8 turns; grid:2 takes up to 12, and is no reason to refuse, nor to change calc's."""
    plan = make_plan(Options(model=str(run), env=("calc:1", "grid:2", "calc:2"), num_tasks=20))
    assert {cell.name: plan.config(cell).max_turns for cell in plan.cells} == {
        "calc:1": 8,
        "grid:2": 12,
        "calc:2": 8,
    }
    assert [[cell.name for cell in cells] for cells in by_limits(plan.cells)] == [
        ["calc:1", "calc:2"],
        ["grid:2"],
    ]
    recorded = plan.recorded_settings()
    assert (recorded["max_turns"], recorded["max_turns_by_cell"]) == (8, {"grid:2": 12})
    alone = make_plan(Options(model=str(run), env=("calc:1",), num_tasks=20))
    assert "max_turns_by_cell" not in alone.recorded_settings()


def test_turns_that_are_given_hold_for_every_level(run: Path) -> None:
    plan = make_plan(Options(model=str(run), env=("calc:1", "grid:2"), num_tasks=20, max_turns=9))
    assert [cell.max_turns for cell in plan.cells] == [9, 9]


def test_versions_that_differ_are_told_and_written() -> None:
    outcome = TaskOutcome(task="a", env="calc", level=1, solved=(True,))
    ours, other = (
        Evaluation(policy={"name": "p"}, settings={}, versions=versions, outcomes=(outcome,))
        for versions in ({"vllm": "2", "torch": "1", "commit": "b"}, {"vllm": "1", "torch": "1"})
    )
    report = Report.of(ours, other, [1])
    assert [line.strip() for line in report.lines() if "versions" in line] == [
        "NOTE: the versions differ: commit: 'b' against None",
        "NOTE: the versions differ: vllm: '2' against '1'",
    ]
    assert report.to_json()["against"]["versions"] == {"vllm": "1", "torch": "1"}


class Silent:
    """The handle of an actor whose calls never end."""

    class run_group:  # noqa: N801  (a method of the actor)
        @staticmethod
        def remote(request: GroupRequest) -> asyncio.Future[TrajectoryGroup]:
            return asyncio.get_running_loop().create_future()


def test_an_engine_that_hangs_is_noticed_after_one_groups_deadline(run: Path) -> None:
    """20 groups, one at a time: 20 deadlines until the collector would notice."""
    options = Options(model=str(run), env=("calc:1",), num_tasks=20, group_deadline_s=0.5)
    plan = make_plan(options)
    rollouts = object.__new__(RemoteRollouts)  # without its Ray actor
    rollouts.name, rollouts._group_s, rollouts._actor = "engine 0", 0.5, Silent
    started = time.monotonic()
    with pytest.raises(PeerFailedError, match=r"waited 0.5 s for engine 0 \(group 0\)"):
        asyncio.run(collect(plan, plan.cells, [rollouts], num_concurrent=1))
    assert time.monotonic() - started < 5
    assert plan.config(plan.cells[0]).group_deadline_s == 0.5  # what the engines of `plan` are made with


def test_an_endpoint_that_hangs_is_noticed_after_one_groups_deadline(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return completion("hi") if body["max_tokens"] == 1 else (time.sleep(60) or completion("late"))

    started = time.monotonic()
    with serving(answer) as server:
        named = ["--endpoint", server.url, "--endpoint-model", "m", "--env", "calc:1", "--num-tasks", "24"]
        limits = ["--group-deadline-s", "1", "--num-concurrent", "1", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["evaluate", *named, *limits])
        assert main() == STOPPED
    assert "the evaluation waited 1 s (--group-deadline-s) for group 0 of" in capsys.readouterr().err
    assert time.monotonic() - started < 12


def test_the_episodes_are_written_for_the_viewer(tmp_path: Path, monkeypatch) -> None:
    with serving(lambda body: completion("hi")) as server:
        named = ["--endpoint", server.url, "--endpoint-model", "m", "--env", "calc:1", "calc:2", "--k", "2"]
        monkeypatch.setattr(sys, "argv", ["evaluate", *named, "--num-tasks", "3", "--out", str(tmp_path)])
        assert main() == 0
    (viewed,) = open_runs([tmp_path])
    viewed.refresh_fully()
    assert viewed.problem_texts == []
    rows = [(row.split, row.step, row.level, row.group, row.member) for row in viewed.index.rows]
    # two samples of each of three tasks of each level, and no two tasks under one number
    assert rows == [("eval", 0, 1 + group // 3, group, member) for group in range(6) for member in range(2)]
    assert viewed.manifest["policy"]["name"] == "m"
