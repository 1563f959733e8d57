"""Every file, folder and hub commit that a run is made from has a digest, and a change of it changes that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from rl.config import Config
from rl.inputs import HEAD_BYTES, input_digests


@dataclass(frozen=True, kw_only=True)
class WithData(Config):
    data: str = ""


@pytest.mark.parametrize("prefix", ["", "shuffled:", "reward_model:", "shuffled:reward_model:"])
def test_a_reward_is_found_whatever_is_said_of_it(tmp_path: Path, prefix: str) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text("def f(episode): ...")
    config = Config(reward=f"{prefix}{file}:f")
    before = input_digests(config)
    assert before.keys() == {"reward"}
    file.write_text("def f(episode): pass")
    assert input_digests(config) != before


def test_a_module_is_the_file_that_it_comes_from() -> None:
    assert input_digests(Config(env="envs.tasks.calc:ENV")).keys() == {"env"}
    assert input_digests(Config(env="calc", reward="no.such_module:f")) == {}


def test_data_are_read_whole_and_a_models_large_files_by_head_and_size(tmp_path: Path) -> None:
    file, model = tmp_path / "data.jsonl", tmp_path / "model"
    model.mkdir()
    config = WithData(data=str(file), model=str(model))
    for path in (file, model / "weights"):
        path.write_bytes(b"a" * (HEAD_BYTES + 10))
    before = input_digests(config)
    for path in (file, model / "weights"):
        path.write_bytes(b"a" * (HEAD_BYTES + 9) + b"b")
    after = input_digests(config)
    assert before.keys() == after.keys() == {"data", "model"}
    assert before["data"] != after["data"]
    assert before["model"] == after["model"]


def test_a_hub_model_has_the_commit_of_its_copy_here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert input_digests(Config(model="owner/name")) == {}
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abcd")
    assert input_digests(Config(model="owner/name")) == {"model": "commit 0123abcd"}
