"""A checkpoint holds all that a learner and a driver are made of, and one that is damaged is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.algorithms import get_algorithm
from rl.checkpoint import CheckpointError, checkpoints_of, load_run_state, newest_sound, verify
from rl.config import Config
from rl.critic import BetaTracker
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.machine import Machine
from rl.precision import Precision
from rl.resume import (
    changed_manifest,
    changed_settings,
    find_resume,
    recorded_config,
    require_unchanged,
)
from rl.run_dir import RunDir, RunState
from rl.run_lock import RunDirError
from rl.spo import PromptBaselines
from tests.rl.test_learner import ready
from tests.tiny import make_tiny_mixture, make_tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": get_algorithm("grpo", kl_loss_coef=0.1)},
    "ppo, a critic's head": {"algorithm": get_algorithm("ppo", critic="head"), "critic_lr": 1e-2},
    "ppo, a separate critic": {"algorithm": get_algorithm("ppo", critic="separate"), "critic_lr": 1e-2},
    "float16": {"algorithm": get_algorithm("grpo"), "precision": Precision(model="float16")},
    "a mixture": {"algorithm": get_algorithm("grpo", router_aux_loss_coef=0.1)},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    path = tmp_path_factory.mktemp("models")
    return {False: make_tiny_model(path / "dense", tied=True), True: make_tiny_mixture(path / "mixture")}


def everything(own: Learner) -> list[torch.Tensor]:
    modules = [module for module in (own.policy, own.critic, own.reference) if module is not None]
    adamw = own.optimizer.adamw.state_dict()["state"]
    moments = [value for _, state in sorted(adamw.items()) for _, value in sorted(state.items())]
    numbers = [
        own.optimizer.num_updates,
        *own.optimizer.schedule.get_last_lr(),
        own.optimizer.scaler.get_scale(),
    ]
    return [
        *(tensor.detach().clone() for module in modules for tensor in module.parameters()),
        *(moment.clone() for moment in moments),
        torch.tensor(numbers, dtype=torch.float64),
        torch.get_rng_state(),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_goes_on_from_a_checkpoint_bit_for_bit(
    folders: dict[bool, Path], tmp_path: Path, kind: str
) -> None:
    folder = folders[kind == "a mixture"]
    spec = LearnerSpec(
        model=str(folder),
        learning_rate=1e-3,
        num_updates=6,
        warmup_updates=3,
        lr_schedule="cosine",
        **KINDS[kind],
    )
    unbroken = Learner(spec)
    for _ in range(2):
        unbroken.update(ready(unbroken, folder))
    torch.rand(3)  # the random state is somewhere
    unbroken.checkpoint(str(tmp_path / "step_000002"), {"step": 2})
    at_checkpoint = everything(unbroken)
    verify(tmp_path / "step_000002")
    unbroken.update(ready(unbroken, folder))

    resumed = Learner(replace(spec, seed=9))
    resumed.resume(str(tmp_path / "step_000002"))
    assert all(torch.equal(a, b) for a, b in zip(at_checkpoint, everything(resumed), strict=True))
    resumed.update(ready(resumed, folder))
    assert all(
        torch.equal(a, b) for a, b in zip(everything(unbroken)[:-1], everything(resumed)[:-1], strict=True)
    )


@pytest.fixture(scope="module")
def made(folders: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints."""
    path = tmp_path_factory.mktemp("checkpoints")
    own = Learner(
        LearnerSpec(
            model=str(folders[False]), algorithm=get_algorithm("grpo"), learning_rate=1e-3, num_updates=3
        )
    )
    for step in (1, 2):
        own.update(ready(own, folders[False]))
        own.checkpoint(str(path / f"step_{step:06d}"), asdict(RunState(step=step)))
    return path


def test_a_flipped_bit_in_any_file_is_detected_and_the_file_named(made: Path, tmp_path: Path) -> None:
    names = sorted(
        str(f.relative_to(made / "step_000002")) for f in (made / "step_000002").rglob("*") if f.is_file()
    )
    assert {"model.safetensors", "training/learner.safetensors", "training/run.json", "sha256.json"} <= {
        *names
    }
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(made, folder)
        victim = folder / "step_000002" / name
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        sound, problems = newest_sound(folder)
        assert sound == folder / "step_000001"
        assert len(problems) == 1
        assert "step_000002" in problems[0]
        # A hash that was changed accuses the file that it is of, or makes the list itself unreadable.
        assert name in problems[0] or name == "sha256.json"
        assert load_run_state(folder / "step_000001")["step"] == 1


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda folder: (folder / "model-2.safetensors").touch(),
            "model-2.safetensors was not written by the run",
        ),
        (lambda folder: (folder / "sha256.json").unlink(), "sha256.json cannot be read"),
        (lambda folder: (folder / "sha256.json").write_text("[1]"), "sha256.json cannot be read"),
        (
            lambda folder: (folder / "training/learner.safetensors").write_bytes(b""),
            "training/learner.safetensors is damaged",
        ),
    ],
)
def test_a_checkpoint_with_a_file_too_few_or_too_many_is_refused(
    made: Path, tmp_path: Path, harm: Any, told: str
) -> None:
    shutil.copytree(made, tmp_path / "checkpoints")
    folder = checkpoints_of(tmp_path / "checkpoints")[0]
    harm(folder)
    with pytest.raises(CheckpointError) as raised:
        verify(folder)
    assert told in str(raised.value)


def run_of(path: Path, **settings: Any) -> RunDir:
    directory = RunDir(path)
    directory.write_config(Config(**settings))
    return directory


def test_a_run_goes_back_to_what_its_checkpoint_knew(made: Path, tmp_path: Path) -> None:
    with run_of(tmp_path / "run") as run:
        shutil.rmtree(run.checkpoints)
        shutil.copytree(made, run.checkpoints)
        run.append_metrics(1, {"a": 1.0})
        run.append_consumed(1, ["0-0-0"])
        known = run.file_bytes()
        run.append_metrics(2, {"a": 2.0})
        run.append_consumed(2, ["1-1-0"])
        (run.path / "later.jsonl").write_text("{}\n")
    with pytest.raises(RunDirError, match=r"not empty .* or --resume"):
        RunDir(tmp_path / "run")
    with RunDir(tmp_path / "run", resumed=True) as run:
        resume, problems = find_resume(run)
        assert (resume.checkpoint.name, resume.state.step, problems) == ("step_000002", 2, [])
        run.go_back(known)
        assert run.file_bytes() == known | {"later.jsonl": 0}
        run.append_metrics(2, {"a": 3.0})
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert [row["a"] for row in rows] == [1.0, 3.0]
        with pytest.raises(RunDirError, match=r"metrics\.jsonl lost lines"):
            run.go_back(known | {"metrics.jsonl": 10_000})
        run.note_resume(2, ["seed: recorded 0, given 1"])
        (noted,) = json.loads((run.path / "resumes.json").read_text())
        assert (noted["after_step"], noted["forced"]) == (2, ["seed: recorded 0, given 1"])
        run.set_aside(2)
        assert len(checkpoints_of(run.checkpoints)) == 2
        shutil.copytree(run.checkpoint(2), run.checkpoint(3))
        (run.checkpoint(3) / "model.safetensors").unlink()
        resume, problems = find_resume(run)
        assert resume.state.step == 2
        assert "step_000003: model.safetensors is missing" in problems[0]
        run.set_aside(resume.state.step)
        assert not run.checkpoint(3).exists()  # the step is saved again, and nothing is ever overwritten
        assert (run.checkpoints / "broken_step_000003" / "training").is_dir()
        run.prune_checkpoints(1)
        assert [path.name for path in checkpoints_of(run.checkpoints)] == ["step_000002"]
        shutil.rmtree(run.checkpoints / "step_000002")
        with pytest.raises(RunDirError, match="no checkpoint to resume from: it holds none"):
            find_resume(run)


def test_what_is_no_run_or_another_recipes_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"holds no config\.json; --resume expects the directory of a run"):
        recorded_config(tmp_path, Config)
    (tmp_path / "config.json").write_text(json.dumps({**asdict(Config()), "beta": 0.1} | {}))
    with pytest.raises(RunDirError, match=r"it has beta too many and lacks nothing"):
        recorded_config(tmp_path, Config)
    with pytest.raises(RunDirError, match="is no directory"):
        RunDir(tmp_path / "nothing", resumed=True)


def test_every_change_is_named_and_refused_unless_it_is_forced() -> None:
    recorded = Config(seed=1)
    given = replace(recorded, seed=2, learning_rate=1e-5, show_every=1, trackers="wandb", sync_deadline_s=9.0)
    changes = list(changed_settings(recorded, given))
    assert changes == [
        "seed: recorded 1, given 2",
        "learning_rate: recorded 0.0003, given 1e-05",
    ]
    before = {"versions": {"torch": "2.13.0", "ray": "2"}, "code": {"rl": "a"}, "inputs": {"model": "m"}}
    now = {"versions": {"torch": "2.14.0", "ray": "2"}, "code": {"rl": "b"}, "inputs": {}}
    named = list(changed_manifest(before, now))
    assert named == [
        "versions: torch: recorded 2.13.0, now 2.14.0",
        "code: rl: recorded a, now b",
        "inputs: model: recorded m, now None",
    ]
    with pytest.raises(RunDirError) as raised:
        require_unchanged(iter(named), forced=False)
    assert all(line in str(raised.value) for line in (*named, "--force-resume"))
    assert require_unchanged(iter(named), forced=True) == named
    assert require_unchanged(iter(()), forced=False) == []


def test_a_forced_resume_writes_down_what_the_run_goes_on_with(tmp_path: Path) -> None:
    machine = Machine.here()
    with RunDir(tmp_path / "run") as run:
        run.write_config(Config(learning_rate=1e-3))
        run.write_manifest(Config(learning_rate=1e-3), machine)
        before = run.read_manifest()
    given = replace(recorded_config(tmp_path / "run", Config), learning_rate=1e-5, force_resume=True)
    with RunDir(tmp_path / "run", resumed=True) as run:
        run.write_forced(given, machine)
        assert run.read_manifest()["started_at"] == before["started_at"]
    again = recorded_config(tmp_path / "run", Config)
    assert (again.learning_rate, again.force_resume) == (1e-5, False)
    assert list(changed_settings(again, replace(given, force_resume=False))) == []


def test_a_run_of_a_newer_version_or_none_is_refused_in_words(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run") as run:
        run.write_config(Config())
        run.write_manifest(Config(), Machine.here())
        manifest = run.path / "manifest.json"
        manifest.write_text(json.dumps(run.read_manifest() | {"format": 99}))
        with pytest.raises(RunDirError, match="is of format 99, and this version knows 1: update"):
            run.read_manifest()
    (run.path / "config.json").write_text("[]")
    with pytest.raises(RunDirError, match="holds a list; expected the settings of a run"):
        recorded_config(run.path, Config)


def test_the_ledger_takes_no_step_twice(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run") as run:
        run.append_consumed(1, ["1-0-0"])
        length = run.file_bytes()
        run.append_consumed(2, ["2-1-0"])
        with pytest.raises(ValueError, match="has step 2 already, and step 2 comes again"):
            run.append_consumed(2, ["2-1-0"])
    with RunDir(tmp_path / "run", resumed=True) as run:
        with pytest.raises(ValueError, match="trained on twice"):
            run.append_consumed(1, ["1-0-0"])
        run.go_back(length)
        run.append_consumed(2, ["2-1-0"])


def test_what_a_row_has_learned_from_the_steps_goes_through_json() -> None:
    adaptive = get_algorithm("ppo", kl_coef=0.05, target_kl=0.1)
    moved = adaptive.after_step({"policy/kl_in_reward": 3.0, "rollout/trajectories": 64.0})
    assert moved.kl_coef != adaptive.kl_coef
    assert adaptive.restored(json.loads(json.dumps(moved.state()))) == moved
    plain = get_algorithm("grpo")
    assert plain.restored(plain.state()) == plain
    trackers = {"t": BetaTracker(1 / 3, 0.7)}
    spo = PromptBaselines(
        row=get_algorithm("spo"), trackers=trackers, way=0.1 + 0.2, way_when_seen={"t": 0.1}
    )
    fresh = get_algorithm("spo").start()
    assert fresh.restored(json.loads(json.dumps(spo.state()))) == spo
