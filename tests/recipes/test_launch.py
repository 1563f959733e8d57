"""A forced resume is told, noted and written down, whether a setting or a file has changed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from recipes.launch import _reopen
from rl.algorithms import get_algorithm
from rl.config import Config
from rl.defaults import resolve
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.machine import Machine
from rl.resume import recorded_config
from rl.run_dir import RunDir, RunState
from rl.run_lock import RunDirError
from tests.tiny import make_tiny_model

MACHINE = Machine.here()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = str(make_tiny_model(tmp_path / "model", tied=True, num_layers=1))
    config = resolve(Config(model=model, run_dir=str(tmp_path / "run")), MACHINE)
    with RunDir(tmp_path / "run") as directory:
        directory.write_config(config)
        directory.write_manifest(config, MACHINE)
        spec = LearnerSpec(model=model, algorithm=get_algorithm("grpo"), learning_rate=0.1, num_updates=1)
        Learner(spec).checkpoint(str(directory.checkpoint(1)), asdict(RunState(step=1)))
    return tmp_path / "run"


def test_a_changed_setting_is_refused_unless_forced_and_then_written_down(run: Path, capsys) -> None:
    given = replace(recorded_config(run, Config), learning_rate=1e-5)
    with pytest.raises(RunDirError, match=r"learning_rate: recorded 0.0003, given 1e-05"):
        _reopen(given, MACHINE)
    _, directory, resume = _reopen(replace(given, force_resume=True), MACHINE)
    directory.close()
    assert resume.state.step == 1
    assert "WARNING: learning_rate: recorded 0.0003, given 1e-05" in capsys.readouterr().err
    (noted,) = json.loads((run / "resumes.json").read_text())
    assert noted["forced"] == ["learning_rate: recorded 0.0003, given 1e-05"]
    assert recorded_config(run, Config).learning_rate == 1e-5
    _, directory, _ = _reopen(recorded_config(run, Config), MACHINE)  # and needs no force any more
    directory.close()
