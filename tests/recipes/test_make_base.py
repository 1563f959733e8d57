"""The base policy: measured success inside the window, saved so that plain transformers reads it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.registry import resolve_env
from envs.splits import Split, task_seed
from recipes import make_base as make_base_module
from recipes.make_base import make_base, make_base_from, one_thread
from recipes.warm_start import (
    MEASURE_INDEX,
    BaseError,
    BaseSpec,
    WarmStart,
    make_model,
    reference_episode,
)
from rewards.base import resolve_reward
from rollout.agent import request_seed, run_group
from rollout.hf_policy import TransformersPolicy
from rollout.limits import Limits
from rollout.renderer import ChatMLRenderer
from rollout.tokenizer import load_tokenizer

CALC = resolve_env("calc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(cache):
    """The real thing, about half a minute."""
    return make_base("calc", level=1, seed=0, cache_dir=cache)


async def success_on_evaluation_tasks(folder, num_tasks: int) -> float:
    """Success of the saved model, measured on the tasks that a run's evaluation takes."""
    policy = TransformersPolicy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    renderer = ChatMLRenderer(load_tokenizer(str(folder)))
    groups = await asyncio.gather(
        *(
            run_group(
                CALC.make_task(1, task_seed(Split.HELD_OUT, 0, index)),
                CALC,
                policy,
                renderer,
                resolve_reward("", CALC),
                index=index,
                group_size=1,
                trajectory_id=str,
                request_seed=partial(request_seed, 1, 0, index),
                limits=Limits(max_turn_tokens=64),
                context_length=1024,
            )
            for index in range(num_tasks)
        )
    )
    return sum(sum(group.rewards) for group in groups) / num_tasks


async def test_saved_base_succeeds_inside_the_window_on_tasks_that_did_not_decide_it(base):
    low, high = BaseSpec().success_window
    result = json.loads((base / "base.json").read_text())["result"]
    assert low <= result["success"] <= high
    assert low <= await success_on_evaluation_tasks(base, 256) <= high


def test_base_is_a_small_model_folder_with_its_tokenizer(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.config.model_type == "qwen3"
    assert 400_000 < model.num_parameters() < 700_000
    assert model.config.vocab_size == len(load_tokenizer(str(base)).get_vocab())
    end = load_tokenizer(str(base)).eos_token_id
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (end, end)


def test_base_is_made_once(base, cache):
    before = (base / "model.safetensors").stat().st_mtime_ns
    assert make_base("calc", level=1, seed=0, cache_dir=cache) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in cache.iterdir()] == [base.name]


@pytest.mark.parametrize("change", [{"seed": 1}, {"tie_embeddings": False}, {"learning_rate": 2e-3}])
def test_every_input_is_part_of_the_key(base, cache, change):
    with pytest.raises(BaseError):  # another folder, so it is trained, and one step is not enough
        make_base_from(replace(BaseSpec(max_steps=1), **change), cache)
    inputs = json.loads((base / "base.json").read_text())["inputs"]
    assert set(inputs["spec"]) == set(BaseSpec.__dataclass_fields__)


def test_source_of_the_environment_is_part_of_the_key(tmp_path):
    source = "from envs.tasks.calc import ENV as CALC\nfrom dataclasses import replace\n"
    source += "def reference(task, transcript):\n    return CALC.reference(task, transcript)\n"
    source += "ENV = replace(CALC, name='mine', reference=reference)\n"
    keys = []
    for number, comment in enumerate(("", "# changed\n")):
        path = tmp_path / str(number) / "mine.py"
        path.parent.mkdir()
        path.write_text(source + comment)
        keys.append(make_base_module.input_sources(resolve_env(f"{path}:ENV"))["mine.py"])
    assert keys[0] != keys[1]


async def test_reference_episode_trains_what_a_policy_says_and_nothing_else():
    warm_start = WarmStart(BaseSpec(), CALC)
    task = CALC.make_task(1, task_seed(Split.WARM_START, 0, 0))
    episode = await reference_episode(task, CALC, warm_start.renderer, max_turns=3)
    (a, x, b, y), (c, z, d, w) = task.metadata["plan"]
    head, end = "<|im_start|>", "<|im_end|>"
    # (text, mask): the whole episode, in order
    pieces = [
        (f"{head}user\n{task.messages[0].text}{end}\n{head}assistant\n", 0),
        (f"[calc {a}{x}{b}]{end}", 1),
        (f"\n{head}tool\n{y}{end}\n{head}assistant\n", 0),
        (f"[calc {c}{z}{d}]{end}", 1),
        (f"\n{head}tool\n{w}{end}\n{head}assistant\n", 0),
        (f"{w}{end}", 1),
    ]
    encoded = [(warm_start.tokenizer.encode(text, add_special_tokens=False), mask) for text, mask in pieces]
    assert episode.token_ids == tuple(i for ids, _ in encoded for i in ids)
    assert episode.loss_mask == tuple(mask for ids, mask in encoded for _ in ids)


async def test_reference_player_that_fails_is_refused():
    wrong = replace(CALC, reference=lambda task, transcript: "5")
    task = CALC.make_task(1, task_seed(Split.WARM_START, 0, 0))
    with pytest.raises(ValueError, match="the reference player of calc got"):
        await reference_episode(task, wrong, WarmStart(BaseSpec(), CALC).renderer, max_turns=3)


class Scripted(WarmStart):
    """Trains for real; its measurements are given."""

    def __init__(self, *measurements: float, **changes) -> None:
        quick = BaseSpec(
            measure_every=1, measure_from_probability=0.0, batch_size=2, max_steps=len(measurements)
        )
        super().__init__(replace(quick, **changes), CALC)
        self.measurements = iter(measurements)
        self.weights_at_measurement = []

    def measure(self) -> float:
        self.weights_at_measurement.append(self.model.lm_head.weight.detach().clone())
        return next(self.measurements)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize(
    ("measurements", "steps", "success"),
    [
        ((0.1, 0.25, 0.4, 0.5), 3, 0.4),  # the first at the target
        ((0.1, 0.25, 0.7), 2, 0.25),  # jumped over: the last one inside
        ((0.1, 0.25, 0.15), 2, 0.25),  # never at the target
    ],
)
def test_weights_are_those_of_the_measurement_that_counts(measurements, steps, success, tie_embeddings):
    warm_start = Scripted(*measurements, tie_embeddings=tie_embeddings)
    result = warm_start.run()
    assert (result.steps, result.success) == (steps, success)
    assert torch.equal(warm_start.model.lm_head.weight, warm_start.weights_at_measurement[steps - 1])


@pytest.mark.parametrize("role", ["base policy", "teacher"])
def test_progress_says_what_is_made(tmp_path, capsys, role):
    spec = BaseSpec(batch_size=2, max_steps=20, hidden_size=64, measure_every=100)
    with pytest.raises(BaseError):  # 20 steps are not enough
        make_base_from(spec, tmp_path, role=role)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{role}: step 20, ")


@pytest.mark.parametrize("measurements", [(0.0, 0.1), (0.1, 0.7)])
def test_base_outside_the_window_is_refused(measurements):
    with pytest.raises(BaseError, match=r"no success from 0.2 to 0.6 in 2 measurements"):
        Scripted(*measurements).run()


def test_training_is_a_pure_function_of_the_spec():
    def weights():
        warm_start = WarmStart(BaseSpec(batch_size=4), CALC)
        optimizer = torch.optim.AdamW(warm_start.model.parameters(), lr=1e-3)
        torch.rand(1)  # global random numbers that others draw are no part of it
        losses = [warm_start.train_step(step, optimizer) for step in range(2)]
        return losses, warm_start.model.state_dict()

    with one_thread():
        (first_losses, first), (second_losses, second) = weights(), weights()
    assert first_losses == second_losses
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_is_drawn_from_its_seed_and_leaves_the_global_state_alone():
    vocab = WarmStart(BaseSpec(), CALC).tokenizer.get_vocab()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    tied, untied = (make_model(BaseSpec(tie_embeddings=tie), vocab) for tie in (True, False))
    assert torch.equal(torch.get_rng_state(), state)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    mixture = make_model(BaseSpec(num_experts=4), vocab)
    assert mixture.config.num_experts_per_tok * mixture.config.moe_intermediate_size == 3 * 128
    assert mixture.model.layers[2].mlp.experts.down_proj.shape == (4, 128, 192)
    other = make_model(BaseSpec(seed=1), vocab)
    assert not torch.equal(other.model.embed_tokens.weight, tied.model.embed_tokens.weight)


def test_tasks_that_decide_the_stop_are_not_those_of_the_evaluation():
    def seeds(first):
        return {task_seed(Split.HELD_OUT, 0, first + index) for index in range(10_000)}

    assert seeds(0).isdisjoint(seeds(MEASURE_INDEX))


@pytest.mark.parametrize(
    ("env", "level", "problem"),
    [("calk", 1, "did you mean 'calc'"), ("calc", 9, "unknown level of environment 'calc' '9'")],
)
def test_unknown_environment_and_level_are_refused_before_training(tmp_path, env, level, problem):
    with pytest.raises(ValueError, match=problem):
        make_base(env, level=level, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_spec_refuses_a_target_outside_the_window_and_a_width_that_has_no_heads():
    with pytest.raises(ValueError, match=r"target_success is 0\.9"):
        BaseSpec(target_success=0.9)
    with pytest.raises(ValueError, match="hidden_size is 100; expected a multiple of 64"):
        BaseSpec(hidden_size=100)


def test_command_line_has_help_for_every_option():
    command = [sys.executable, "-m", "recipes.make_base", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    for name in BaseSpec.__dataclass_fields__:
        assert f"--spec.{name.replace('_', '-')}" in shown
