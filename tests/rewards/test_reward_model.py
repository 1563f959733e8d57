"""A learned reward: it orders what it was shown, says the same once saved, and reads no markers in texts."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.episode import Episode, Score
from envs.messages import Message, StopReason, message
from envs.registry import resolve_env
from recipes.char_tokenizer import make_char_tokenizer
from recipes.reward_model import (
    DataError,
    Options,
    accuracy,
    make_reward_model,
    recorded_pairs,
    split_groups,
)
from rewards.base import resolve_reward
from rewards.reward_model import load_reward_model, transcript_ids
from rl.config import Config
from rl.defaults import resolve
from rl.machine import Machine
from rl.preflight import preflight, reward_model_problems
from rl.validation import ConfigError
from rollout.record import Record, TrajectoryRecorder
from rollout.tokenizer import load_tokenizer
from rollout.trajectory import Trajectory
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("policy"), tied=True)


def episode(answer: str, number: int) -> Episode:
    task = resolve_env("calc").make_task(1, number)
    transcript = (message("user", f"{number}="), message("assistant", answer))
    return Episode(
        task=task, transcript=transcript, stop_reason=StopReason.ANSWERED, final_state={"operations": []}
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of four in which answers that hold a 7 score 1, the others 0."""
    path = tmp_path_factory.mktemp("data") / "trajectories.jsonl"
    recorder, rng = TrajectoryRecorder(path, max_bytes=10**8), random.Random(0)
    for group in range(60):
        answers = [f"{rng.randrange(7)}{7 if member % 2 else 8}{rng.randrange(7)}" for member in range(4)]
        recorder.write(
            Record(
                step=1,
                split="train",
                group=group,
                member=member,
                trajectory=Trajectory(
                    id=f"{group}-{member}",
                    episode=episode(answer, group),
                    turns=(),
                    score=Score(value=float("7" in answer)),
                ),
            )
            for member, answer in enumerate(answers)
        )
    recorder.close()
    return path


@pytest.fixture(scope="module")
def made(data: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "reward_model"
    options = Options(data=str(data), model=str(policy), out=str(out), num_steps=60)
    measured = make_reward_model(options)
    assert measured.num_tasks == 24  # 12 of 60 groups, two pairs each
    assert measured.rate > 0.9
    return out


def test_it_rewards_what_was_preferred_and_reports_the_environments_success(made):
    reward = resolve_reward(f"reward_model:{made}", resolve_env("calc"))
    good, bad = (reward.fn(episode(answer, 200)) for answer in ("171", "181"))
    assert good.value is not None
    assert bad.value is not None
    assert good.value > bad.value + 1.0
    assert good.parts == {"reward_model": good.value}
    assert good.success == 0.0  # the task has no such answer: the environment decides


def test_a_saved_model_gives_the_rewards_that_it_was_trained_to(made):
    twice = [load_reward_model(str(made))[0] for _ in range(2)]
    ids = transcript_ids(episode("171", 5).transcript, load_tokenizer(str(made)))
    with torch.no_grad():
        values = [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for model in twice]
    assert values[0] == values[1]


def test_what_is_saved_is_what_was_measured(made, data):
    model, tokenizer = load_reward_model(str(made))
    _, held_out = split_groups(list(recorded_pairs(data, tokenizer, most=4)))
    told = json.loads((made / "reward_model.json").read_text())
    assert (told["pairs"], told["held_out_pairs"]) == (96, 24)  # 48 and 12 groups, two pairs each
    assert accuracy(model, held_out).rate == told["accuracy"]
    assert model.score.weight.abs().max() > 0  # the head starts from 0


def test_no_group_is_on_both_sides():
    groups = [[([index], [index])] for index in range(10)]
    train, held_out = split_groups(groups)
    assert [pair[0] for pair in held_out] == [[0], [5]]
    assert len(train) == 8


def test_a_marker_in_a_text_is_text():
    tokenizer = make_char_tokenizer()
    end = tokenizer.get_vocab()["<|im_end|>"]
    said: list[Message] = [message("user", "1"), message("assistant", "<|im_end|>")]
    assert transcript_ids(said, tokenizer).count(end) == 2


def test_a_reward_model_with_another_tokenizer_is_refused(made, policy, tmp_path):
    config = Config(model=str(policy), reward=f"reward_model:{made}")
    tokenizer = load_tokenizer(str(policy))
    assert list(reward_model_problems(config, tokenizer)) == []
    other = make_char_tokenizer()
    other.add_tokens(["new"])
    (problem,) = reward_model_problems(config, other)
    assert "another tokenizer" in problem
    assert "'new'" in problem
    (problem,) = reward_model_problems(replace(config, reward=f"reward_model:{tmp_path}"), tokenizer)
    assert "has no tokenizer" in problem


def test_a_run_with_another_tokenizers_reward_model_is_refused_before_it_starts(made, policy, tmp_path):
    other = shutil.copytree(made, tmp_path / "other")
    config = resolve(Config(model=str(policy), reward=f"reward_model:{other}"), Machine.here())
    preflight(config, Machine.here(), tmp_path / "run")
    tokenizer = load_tokenizer(str(policy))
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(other)
    for spec in (config.reward, f"shuffled:{config.reward}"):
        with pytest.raises(ConfigError, match="the reward model has another tokenizer than model"):
            preflight(replace(config, reward=spec), Machine.here(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_preferences_are_refused(policy, tmp_path, made, data):
    with pytest.raises(DataError, match="no such file"):
        make_reward_model(Options(data=str(tmp_path / "gone"), model=str(policy), out=str(tmp_path / "out")))
    with pytest.raises(FileExistsError, match="give another --out"):
        make_reward_model(Options(data=str(data), model=str(policy), out=str(made)))
    empty = tmp_path / "trajectories.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="0 groups give 0 pairs"):
        make_reward_model(Options(data=str(empty), model=str(policy), out=str(tmp_path / "out")))
