"""A reward under a Python of the user's own: with its packages and none of ours, or refused at the start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from envs.tasks.calc import ENV
from rewards.base import Sample, check_reward, resolve_reward
from rl.config import Config
from rl.inputs import input_digests

JUDGE = replace(ENV, score=lambda episode: Score(value=0.0, success=1.0))

REWARD = """
import importlib.util
import os
import sys

import only_there
from rewards.adapters import from_verl

def compute_score(solution_str, ground_truth, weight):
    found = [name for name in ("numpy", "torch", "ray") if importlib.util.find_spec(name)]
    found += [folder for folder in sys.path if os.path.exists(f"{folder or '.'}/rewards/base.py")]
    return {"score": weight * (solution_str == ground_truth), "prefix": sys.prefix, "ours": found}

REWARD = from_verl(compute_score, weight=only_there.WEIGHT)
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python without a package but `only_there`."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python3.*/site-packages")
    (site / "only_there.py").write_text("WEIGHT = 0.5\n")
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_reward.py"
    path.write_text(REWARD)
    return path


def sample(said: str) -> Sample:
    task = Task(id="t", env="calc", messages=(message("user", "1+2"),), answer="3")
    transcript = (*task.messages, message("assistant", said))
    return Sample(episode=Episode(task=task, transcript=transcript, stop_reason=StopReason.ANSWERED))


async def scores(spec: str, python: Path, said: Sequence[str]) -> list[Score]:
    reward = resolve_reward(spec, JUDGE, python=str(python))
    await reward.start()
    try:
        return [(await reward.score([sample(text)], timeout_s=30))[0] for text in said]
    finally:
        await reward.close()


async def test_a_reward_runs_under_its_own_python_with_its_packages_and_none_of_ours(
    tmp_path, monkeypatch, bare, file
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = bare / "bin" / "python"
    await check_reward(f"{file}:REWARD", ENV, 1, str(python))
    right, wrong = await scores(f"{file}:REWARD", python, ["3", "4"])
    assert (right.value, right.success, wrong.value) == (0.5, 1.0, 0.0)
    assert json.loads(right.explanation) == {"prefix": str(bare), "ours": []}
    with pytest.raises(ValueError, match="No module named 'only_there'"):
        await check_reward(f"{file}:REWARD", ENV, 1)


async def test_a_module_of_that_pythons_packages_may_be_named(bare, file):
    (site,) = bare.glob("lib/python3.*/site-packages")
    (site / "theirs.py").write_text(REWARD)
    (score,) = await scores("theirs:REWARD", bare / "bin" / "python", ["3"])
    assert score.value == 0.5


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("", 0o644, "cannot be run: Permission denied; expected the path of a Python"),
        (
            "echo what; exit 4",
            0o755,
            "is no Python that can be used: it ended with exit status 4 and said what",
        ),
        ("exit 0", 0o755, "exit status 0 and said nothing"),
        ("echo python 3 9", 0o755, r"is Python 3\.9; expected 3\.11 or newer"),
        ("echo python 3 11; echo no dataclasses; exit 1", 0o755, r"(?s)cannot run rewards.*no dataclasses"),
        ("exec sleep 60", 0o755, "had not said its version after 0.5 s"),
    ],
)
async def test_what_is_no_python_for_it_is_refused_with_what_it_said(
    tmp_path, monkeypatch, file, text, mode, told
):
    if "sleep" in text:
        monkeypatch.setattr("rewards.interpreters.PROBE_S", 0.5)
    python = script(tmp_path / "python", text, mode)
    with pytest.raises(
        ValueError, match=f"^reward_python = '{python}' .*{told}" if "(?s)" not in told else told
    ):
        await check_reward(f"{file}:REWARD", ENV, 1, python)


async def test_one_that_is_not_there_is_refused_at_the_start_and_later_leaves_samples_unscored(bare, file):
    missing = str(bare / "bin" / "pyhton")
    with pytest.raises(ValueError, match="cannot be run: No such file or directory; expected the path"):
        await check_reward(f"{file}:REWARD", ENV, 1, missing)
    reward = resolve_reward(f"{file}:REWARD", JUDGE, python=missing)
    with pytest.raises(ValueError, match=r"its process did not start: .*No such file"):
        await reward.start()
    (score,) = await reward.score([sample("3")], timeout_s=5)
    assert (score.value, score.error_kind) == (None, "crashed")


@pytest.mark.parametrize("spec", ["", "calc", "shuffled:calc"])
async def test_it_is_refused_where_no_reward_of_the_users_own_would_run_under_it(spec):
    with pytest.raises(ValueError, match=r"reward_python = .* has no effect: only a reward of your own"):
        await check_reward(spec, ENV, 1, sys.executable)


def test_a_run_notes_the_interpreter_and_no_module_of_ours_in_place_of_its(bare, file):
    python = str(bare / "bin" / "python")
    assert input_digests(Config(reward="envs.tasks.calc:score")).keys() == {"reward"}
    by_module = Config(reward="envs.tasks.calc:score", reward_python=python)
    assert input_digests(by_module).keys() == {"reward_python"}
    assert input_digests(Config(reward=f"{file}:REWARD", reward_python=python)).keys() == {
        "reward",
        "reward_python",
    }
