"""Supervised fine-tuning: rollouts' masks, every sample once an epoch, only what was said in the gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from envs.messages import message
from recipes.char_tokenizer import make_char_tokenizer
from recipes.sft import SftConfig, load_samples
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import metric_values
from rl.samples import TrainSample, trajectory_samples
from rl.supervised import Supervised, SupervisedStep, conversation_sample, recorded_samples, supervised_batch
from rl.validation import ConfigError
from rollout.record import Record, TrajectoryRecorder
from rollout.renderer import ChatMLRenderer, Tokenizer
from tests.tiny import load, make_group, make_tiny_model, reference_logprobs

SAID = ("[add(1,2)]", "3")
CONVERSATION = (
    message("user", "1+2="),
    message("assistant", SAID[0]),
    message("tool", "3"),
    message("assistant", SAID[1]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def renderer() -> ChatMLRenderer:
    return ChatMLRenderer(cast(Tokenizer, make_char_tokenizer()))


def conversation(renderer: ChatMLRenderer, name: str = "c") -> TrainSample:
    return conversation_sample(CONVERSATION, renderer, name=name)


def test_a_conversation_has_the_ids_and_the_mask_of_the_rollout_that_says_it(renderer):
    prompt, reply = renderer.render(CONVERSATION[:1]), [CONVERSATION[2]]
    said = [renderer.completion_ids(text) for text in SAID]
    segments = [prompt, said[0], renderer.render_continuation(reply, closed=True), said[1]]
    (trajectory,) = make_group(0, [(segments, 1.0)]).trajectories
    (rollout,) = trajectory_samples(trajectory, 0)
    sample = conversation(renderer)
    assert sample.token_ids.tolist() == rollout.token_ids.tolist()
    assert sample.loss_mask.tolist() == rollout.loss_mask.tolist()
    assert sample.turn_ids.tolist() == rollout.turn_ids.tolist()
    drawn = [int(m) for segment, m in zip(segments, (0, 1, 0, 1), strict=True) for _ in segment]
    assert sample.loss_mask.astype(int).tolist() == drawn


def learner(folder: Path, **fields: Any) -> Learner:
    spec = {"model": str(folder), "algorithm": Supervised(), "learning_rate": 1e-3, "num_updates": 30}
    return Learner(LearnerSpec(**spec | fields))


def test_the_loss_is_the_mean_of_minus_log_pi_over_said_tokens(folder, renderer):
    short = conversation_sample(CONVERSATION[:2], renderer, name="short")
    batch = supervised_batch([conversation(renderer), short])
    model, logps = load(folder), []
    for sample in batch.samples:
        own = reference_logprobs(model, sample.token_ids.tolist())
        logps += own[sample.loss_mask[1:]].tolist()
    for micro_batch_size in (2, 1):
        own = learner(folder, micro_batch_size=micro_batch_size)
        assert metric_values(own.update(batch))["sft/loss"] == pytest.approx(-np.mean(logps), abs=1e-5)


def test_it_learns_to_say_it(folder, renderer):
    own, batch = learner(folder), supervised_batch([conversation(renderer)])
    losses = [metric_values(own.update(batch))["sft/loss"] for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]


def test_only_said_tokens_are_in_the_gradient_and_all_others_are_context(folder, renderer):
    def gradient(sample: TrainSample) -> torch.Tensor:
        own = learner(folder)
        layout = supervised_batch([sample]).padded()
        outputs = own.evaluate(layout)
        counts = supervised_batch([sample]).counts
        loss, _ = own.spec.algorithm.loss(outputs, layout, counts)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in own.model.parameters() if p.grad is not None])

    sample = conversation(renderer)
    changed = sample.token_ids.copy()
    tool = int(np.flatnonzero(~sample.loss_mask & (np.arange(len(changed)) > sample.loss_mask.argmax()))[6])
    changed[tool] = changed[tool] + 1
    context = TrainSample(**{f: getattr(sample, f) for f in TrainSample.__slots__} | {"token_ids": changed})
    assert torch.equal(gradient(sample), gradient(sample))
    assert not torch.equal(gradient(sample), gradient(context))


def test_an_epoch_sees_every_sample_once_in_an_order_of_seed_and_epoch(renderer):
    samples = [conversation(renderer, f"c{index}") for index in range(7)]

    def names(seed: int) -> list[str]:
        step = SupervisedStep(samples, batch_size=3, seed=seed)
        return [sample.trajectory_id for number in range(7) for sample in step.batch(number)]

    assert names(0) == names(0)
    assert names(0) != names(1)
    for epoch in range(3):  # 7 steps of 3 are 3 epochs of 7
        assert set(names(0)[7 * epoch : 7 * epoch + 7]) == {f"c{index}" for index in range(7)}
    assert names(0)[:7] != names(0)[7:14]


def test_only_trajectories_that_scored_enough_are_learned(folder):
    members = [([[5, 6], [7]], 1.0), ([[5, 6], [8]], 0.0), ([[5, 6], [9]], None)]
    trajectories = make_group(0, members).trajectories
    assert [s.token_ids.tolist() for s in recorded_samples(trajectories, min_score=1.0)] == [[5, 6, 7]]


def config(folder: Path, data: Path | str, **changes: Any) -> SftConfig:
    return SftConfig(**{"model": str(folder), "data": str(data), "context_length": 128} | changes)


def test_recorded_runs_and_conversations_are_read(folder, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "trajectories.jsonl", max_bytes=10**6)
    trajectory = make_group(0, [([[5, 6], [7]], 1.0)]).trajectories[0]
    for split in ("train", "eval"):
        recorder.write([Record(step=1, split=split, group=0, member=0, trajectory=trajectory)])
    recorder.close()
    (sample,) = load_samples(config(folder, tmp_path / "trajectories.jsonl"))
    assert sample.token_ids.tolist() == [5, 6, 7]
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": entry.role, "content": entry.text} for entry in CONVERSATION]
    rows.write_text(json.dumps({"messages": messages}) + "\n")
    (sample,) = load_samples(config(folder, rows))
    assert sample.loss_mask.sum() == sum(len(text) + 1 for text in SAID)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("", "", "give --data a run's trajectories.jsonl"),
        ("gone.jsonl", None, "no such file"),
        ("rows.txt", "x", "a .txt file; expected one of .jsonl, .json, .parquet"),
        ("rows.jsonl", '{"text": "a"}', "its columns are text; expected `messages`"),
        ("rows.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "no assistant message"),
        ("rows.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "opens with an assistant"),
        ("rows.jsonl", '{"messages": [{"role": "bot", "content": "a"}]}', "role 'bot'"),
        ("trajectories.jsonl", "", "no sample with split train and a score of at least 1"),
    ],
)
def test_bad_data_are_refused_with_what_to_do(folder, tmp_path, name, content, message):
    if content is not None and name:
        (tmp_path / name).write_text(content + "\n" if content else "")
    with pytest.raises(ConfigError, match=message):
        load_samples(config(folder, tmp_path / name if name else ""))


def test_a_sample_longer_than_the_context_is_refused(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2" * 200}]
    rows.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(ConfigError, match="more than context_length = 128"):
        load_samples(config(folder, rows))


def test_knobs_of_other_objectives_are_refused():
    for changes, text in (({"algorithm": "grpo"}, "only fine-tunes"), ({"clip_ratio_low": 0.1}, "no effect")):
        with pytest.raises(ValueError, match=text):
            SftConfig(**changes).make_algorithm()
