"""Self-distillation: the policy, told the task's answer, as its own teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.messages import message
from rl.algorithms import describe, get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.config import Config
from rl.defaults import resolve
from rl.hints import hint_message, hinted
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.machine import Machine
from rl.preflight import preflight
from rl.rows import JSD, OPSD
from rl.validation import ConfigError, validate
from rollout.renderer import ChatMLRenderer
from rollout.tokenizer import load_tokenizer
from tests.rollout.test_renderer import make_bpe_tokenizer
from tests.tiny import load, make_group, make_tiny_model, reference_logprobs

MACHINE = Machine(host="here", cores=2, memory_bytes=2**34, gpus=())
MEMBERS = [([[5, 6], [7, 8], [9], [10]], 1.0), ([[5, 6], [11]], 0.0)]  # two turns, one turn
ANSWERS = {0: "230", 1: "-4"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("student"), tied=True)


def learner(student: Path, **fields: float) -> Learner:
    given = {"learning_rate": 1e-4, "num_updates": 100, **fields}
    return Learner(LearnerSpec(model=str(student), algorithm=OPSD, **given))


def batch_of(own: Learner) -> TrainBatch:
    return make_batch([make_group(g, MEMBERS, model=own.model, answer=a) for g, a in ANSWERS.items()])


def test_the_teacher_reads_the_answer_before_the_prompt_and_is_the_policy_itself(student):
    own, plain, tokenizer = learner(student, micro_batch_size=3), load(student), load_tokenizer(str(student))
    assert own.teacher is None
    batch = own.score(batch_of(own), OPSD.needs)
    for sample, given in zip(batch.samples, batch.teacher_logprobs, strict=True):
        text = f"<|im_start|>system\nanswer: {ANSWERS[sample.group_id]}<|im_end|>\n"
        before = tokenizer.encode(text, add_special_tokens=False)
        expected = reference_logprobs(plain, [*before, *sample.token_ids.tolist()])[len(before) - 1 :]
        mask = sample.loss_mask
        np.testing.assert_allclose(given[mask], expected[mask], atol=1e-5)
        assert given.shape == mask.shape


def test_the_advantage_is_what_being_told_adds_to_a_tokens_log_prob(student):
    own = learner(student)
    batch = OPSD.assign_advantages(own.score(batch_of(own), OPSD.needs))
    for sample, told, advantages in zip(batch.samples, batch.teacher_logprobs, batch.advantages, strict=True):
        mask = sample.loss_mask
        np.testing.assert_allclose(advantages[mask], (told - sample.rollout_logprobs)[mask], atol=1e-6)
        assert np.abs(advantages[mask]).min() > 1e-4
        assert not advantages[~mask].any()


def test_where_context_changes_nothing_nothing_is_taught(student, tmp_path):
    blind = load(student)
    for layer in blind.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)  # sees one token, so no hint
    blind.save_pretrained(tmp_path)
    load_tokenizer(str(student)).save_pretrained(tmp_path)
    own = learner(tmp_path)
    batch = OPSD.assign_advantages(own.score(batch_of(own), OPSD.needs))
    assert max(np.abs(advantages).max() for advantages in batch.advantages) < 1e-6


def test_the_teacher_is_recomputed_from_the_weights_of_each_step(student):
    own = learner(student, learning_rate=1e-2)
    first = own.score(batch_of(own), OPSD.needs)
    own.update(OPSD.assign_advantages(first))
    again = own.score(batch_of(own), OPSD.needs)
    for sample, before, after in zip(
        first.samples, first.teacher_logprobs, again.teacher_logprobs, strict=True
    ):
        assert np.abs(before - after)[sample.loss_mask].min() > 1e-4


def test_an_update_moves_the_student_towards_what_it_says_when_told(student):
    own = learner(student)
    batch = OPSD.assign_advantages(own.score(batch_of(own), OPSD.needs_for(2)))
    own.update(batch)
    moved = own.score(batch_of(own), frozenset({"old_logprobs"}))
    gain = sum(
        float(((new - old) * a)[s.loss_mask].sum())
        for s, new, old, a in zip(
            batch.samples, moved.old_logprobs, batch.old_logprobs, batch.advantages, strict=True
        )
    )
    assert gain > 0.01


def test_a_hint_stands_behind_bos_and_before_the_prompt_under_no_loss(student):
    tokenizer = load_tokenizer(str(student))
    renderer = ChatMLRenderer(tokenizer)
    (sample,) = make_batch([make_group(0, MEMBERS[:1])]).samples
    told = hinted(sample, [hint_message("answer: {answer}", "7")], renderer)
    num_before = len(told.token_ids) - len(sample.token_ids)
    said = tokenizer.decode(told.token_ids[:num_before].tolist())
    assert said == "<|im_start|>system\nanswer: 7<|im_end|>\n"
    assert told.token_ids[num_before:].tolist() == [5, 6, 7, 8, 9, 10]
    assert told.loss_mask.tolist() == [False] * num_before + [False, False, True, True, False, True]
    with_bos = ChatMLRenderer(make_bpe_tokenizer(num_bos=1))
    prompt, hint = with_bos.render([message("user", "a")]), hint_message("b", None)
    assert with_bos.render_before([hint], prompt) == with_bos.render([hint, message("user", "a")])


def test_a_task_without_an_answer_is_an_error_only_where_the_hint_names_one(student):
    own = learner(student)
    batch = make_batch([make_group(0, MEMBERS)])
    with pytest.raises(ValueError, match=r"Task.answer is None\); use tasks with reference answers"):
        own.score(batch, OPSD.needs)
    assert hint_message("think step by step", None).text == "think step by step"
    assert hint_message("{answer} {x}", "{answer}").text == "{answer} {x}"


def test_hints_without_effect_are_refused():
    with pytest.raises(ValueError, match=r"hint = 'x' has no effect in algorithm 'grpo'.* has no teacher"):
        get_algorithm("grpo", hint="x")
    with pytest.raises(ValueError, match="'jsd': whole distributions are compared with those of another"):
        replace(JSD, hint="x")
    with pytest.raises(ConfigError, match="teacher has no effect: in algorithm 'opsd' the policy itself"):
        validate(Config(algorithm="opsd", teacher="Qwen/Qwen3-0.6B"), MACHINE)
    assert get_algorithm("opd", hint="{answer}").loads_teacher is False
    assert get_algorithm("opd").loads_teacher is True
    assert "the teacher is the policy itself, told 'answer: {answer}'" in describe(OPSD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "tests/recipes/test_preflight.py:LONG"}, "the task has none"),
        ({"hint": "la réponse: {answer}"}, "has no tokens for 'réponse:'"),
        # the system turn: <|im_start|> system \n, 22 characters, <|im_end|> \n
        ({"max_total_tokens": 500, "hint": "x" * 22}, "hint of 27 tokens, 500 are more than the 512"),
    ],
)
def test_what_the_teacher_cannot_be_told_is_refused_before_the_run(student, tmp_path, changes, message):
    config = Config(model=str(student), device="cpu", max_record_mb=1.0, algorithm="opsd")
    preflight(resolve(config, MACHINE), MACHINE, tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        preflight(resolve(replace(config, **changes), MACHINE), MACHINE, tmp_path / "run")
