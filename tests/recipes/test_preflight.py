"""What is refused with the model at hand: before a run directory, and before any process."""

from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from envs.messages import StepResult, Task, message
from envs.registry import EnvDefinition, Lengths
from recipes.launch import launch
from rl.config import Config
from rl.defaults import resolve
from rl.machine import Machine
from rl.model import model_facts
from rl.preflight import LEARNER_BYTES, memory_problems, preflight
from rl.validation import ConfigError
from tests.tiny import load, make_tiny_mixture, make_tiny_model

MACHINE = Machine(host="here", cores=2, memory_bytes=2**34, gpus=())
ENV_FILE = Path(__file__)  # the environments below are named as file.py:attribute


class Echo:
    """Opens with the task's own text."""

    tools = ()

    async def reset(self, task: Task):
        return task.messages

    async def step(self, action):
        return StepResult(messages=(), done=True)

    def final_state(self):
        return {}

    async def close(self):
        pass


def echo(text_of):
    """An environment whose task of seed s reads `text_of(s)`."""
    return EnvDefinition(
        name="echo",
        make_env=Echo,
        make_task=lambda level, seed: Task(
            id=str(seed), env="echo", messages=(message("user", text_of(seed)),)
        ),
        levels=(1,),
        score=lambda episode: None,
        reference=lambda task, transcript: "",
        lengths=lambda level: Lengths(prompt_chars=0, turns=1, turn_chars=0, reply_chars=0),
    )


LONG = echo(lambda seed: "x" * (100 + seed % 7))
FOREIGN = echo(lambda seed: "how many café au lait")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tied", tied=True)


def config_of(model: Path, **changes: object) -> Config:
    return resolve(
        dataclasses.replace(Config(model=str(model), device="cpu", max_record_mb=1.0), **changes), MACHINE
    )


def complaint(config: Config, path: Path, machine: Machine = MACHINE) -> str:
    with pytest.raises(ConfigError) as refused:
        preflight(config, machine, path / "run")
    assert not any(path.iterdir())
    return str(refused.value)


def test_a_run_that_fits_passes_and_writes_nothing(model, tmp_path):
    preflight(config_of(model), MACHINE, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_the_number_of_parameters_is_known_without_the_weights(model, tmp_path):
    shutil.copy(model / "config.json", tmp_path)
    facts = model_facts(str(tmp_path))
    assert facts.num_parameters == sum(p.numel() for p in load(model).parameters())
    assert facts.context_length == 512


def test_context_length_beyond_the_models_is_refused(model, tmp_path):
    text = complaint(config_of(model, context_length=513), tmp_path)
    assert "context_length = 513" in text
    assert "takes 512 tokens" in text
    assert "lower it to 512" in text


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"context_length": 100, "max_total_tokens": 100}, "--context-length"),
        ({"context_length": 200, "max_total_tokens": 100}, "--max-total-tokens"),
    ],
)
def test_a_prompt_without_room_for_an_answer_is_refused(model, tmp_path, changes, option):
    text = complaint(config_of(model, env=f"{ENV_FILE}:LONG", **changes), tmp_path)
    # <|im_start|> user \n, at most 106 x, <|im_end|> \n <|im_start|> assistant \n: 3 + 106 + 5
    assert f"has 114 tokens and leaves none for an answer; raise {option} above 114" in text
    assert "train task" in text
    assert "held_out task" in text


@pytest.mark.parametrize(("limit", "fits"), [(114, False), (115, True)])
def test_one_token_of_room_is_enough(model, tmp_path, limit, fits):
    config = config_of(model, env=f"{ENV_FILE}:LONG", max_total_tokens=limit)
    if fits:
        preflight(config, MACHINE, tmp_path / "run")
    else:
        assert "max_total_tokens = 114" in complaint(config, tmp_path)


def test_characters_that_the_tokenizer_does_not_know_are_refused_by_their_word(model, tmp_path):
    text = complaint(config_of(model, env=f"{ENV_FILE}:FOREIGN"), tmp_path)
    assert "has no tokens for 'café'" in text
    assert "'how'" not in text


def test_a_tokenizer_without_chatml_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|start|>"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (tmp_path / "empty").mkdir()
    assert "lacks the special token(s) <|im_start|>" in complaint(config_of(folder), tmp_path / "empty")


def test_a_full_disk_is_refused_with_what_would_fill_it(model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 3_000_000, 3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    num_parameters = model_facts(str(model)).num_parameters
    text = complaint(config_of(model, num_steps=5, save_every=2, max_record_mb=2.0), tmp_path)
    # steps 2, 4 and the last, 5: two are kept, and the oldest until the newest is there; weight, two moments
    checkpoints = 3 * num_parameters * 12 * 1.2 / 1e6
    assert f"3 checkpoint(s) ({checkpoints:,.0f} MB; --keep-checkpoints)" in text
    one = complaint(config_of(model, num_steps=50, keep_checkpoints=1, max_record_mb=2.0), tmp_path)
    assert "2 checkpoint(s)" in one
    assert f"3 MB free, {checkpoints + 2:,.0f} MB needed" in text
    assert "trajectories (2 MB; --max-record-mb)" in text


def test_a_model_larger_than_the_memory_is_refused(model, tmp_path):
    # float32: learner 16 bytes a parameter, the published copy 4, each of two engines 4
    needed = model_facts(str(model)).num_parameters * (LEARNER_BYTES + 4 + 2 * 4)
    small = dataclasses.replace(MACHINE, memory_bytes=needed - 1)
    config = config_of(model, engines=2)
    assert "need 0.0 GB at least" in complaint(config, tmp_path, small)
    preflight(config, dataclasses.replace(MACHINE, memory_bytes=needed), tmp_path / "run")


def test_moments_that_main_memory_cannot_hold_are_refused(model):
    facts = model_facts(str(model))
    needed = facts.num_parameters * 8  # two moments in float32
    config = Config(model=str(model), device="cuda", optimizer_offload="cpu")
    small, enough = (dataclasses.replace(MACHINE, memory_bytes=size) for size in (needed - 1, needed))
    (told,) = memory_problems(config, small, facts)
    assert "optimizer_offload = 'cpu': AdamW's moments" in told
    assert not list(memory_problems(config, enough, facts))
    assert not list(memory_problems(dataclasses.replace(config, optimizer_offload="none"), small, facts))
    assert not list(memory_problems(dataclasses.replace(config, lora_rank=8), small, facts))


def test_every_problem_is_told_at_once(model, tmp_path):
    lines = complaint(
        config_of(model, env=f"{ENV_FILE}:FOREIGN", context_length=1000, max_total_tokens=20), tmp_path
    )
    of_one_stream = ["max_total_tokens", "the"]
    assert [line.split()[0] for line in lines.splitlines()] == ["context_length", *of_one_stream * 2]


def test_a_refused_launch_leaves_no_run_directory_and_ends_with_2(model, tmp_path, capsys):
    config = Config(env=f"{ENV_FILE}:FOREIGN", device="cpu", run_dir=str(tmp_path / "run"))
    assert launch(config, recipe="test", make_base=lambda config: model) == 2
    assert "This run was not started" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_used_run_directory_is_refused_before_a_base_is_made(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")

    def must_not_be_made(config):
        raise AssertionError

    assert launch(Config(run_dir=str(tmp_path)), recipe="test", make_base=must_not_be_made) == 2
    assert "is not empty (it holds notes.txt)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_replay_is_refused_where_nobody_routes_and_where_the_engine_does_not_tell(
    model: Path, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("runs")
    assert "is dense, it has no experts to choose" in complaint(config_of(model, replay_routing=True), path)
    mixture = make_tiny_mixture(tmp_path_factory.mktemp("mixture"))
    short = {"context_length": 128, "max_total_tokens": 128, "canary_tokens": 32}
    told = complaint(config_of(mixture, replay_routing=True, **short), path)
    assert "replay_routing with device = 'cpu'" in told
    assert "no experts" not in told
