"""What `determinism` promises, what it refuses, and that the learner keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.placement import make_engine_specs, make_learner_spec
from rl.config import Config
from rl.defaults import resolve
from rl.determinism import determinism_lines, determinism_problems, use_exact_kernels
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.machine import Machine
from rl.rows import ALGORITHMS
from rl.validation import ConfigError, validate
from rollout.engine import engine_environment
from tests.tiny import make_tiny_model

LAPTOP = Machine(host="laptop", cores=4, memory_bytes=8 << 30, gpus=())
ONE_GPU = Machine(host="box", cores=16, memory_bytes=128 << 30, gpus=("H100",))
EXACT = Config(determinism="exact")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    use_exact_kernels(False)


def test_exact_stands_on_one_thread_an_engine_on_the_cpu() -> None:
    validate(EXACT, LAPTOP)
    config = resolve(EXACT, LAPTOP)
    assert (config.engine_threads, config.learner_threads) == (1, 4)
    (spec,) = make_engine_specs(config)
    assert "VLLM_BATCH_INVARIANT" not in engine_environment(spec)
    with pytest.raises(ConfigError, match=r"engine_threads = 2 with determinism = 'exact'.*raise engines"):
        validate(replace(EXACT, engine_threads=2), LAPTOP)
    validate(Config(engine_threads=2), LAPTOP)


def test_exact_stands_on_batch_invariant_kernels_on_a_gpu_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (spec,) = make_engine_specs(resolve(EXACT, ONE_GPU))
    assert engine_environment(spec)["VLLM_BATCH_INVARIANT"] == "1"
    (spec,) = make_engine_specs(resolve(Config(), ONE_GPU))
    assert "VLLM_BATCH_INVARIANT" not in engine_environment(spec)
    for capability, num_problems in (((7, 5), 1), ((8, 0), 0), ((9, 0), 0)):
        monkeypatch.setattr("rl.determinism._capabilities", lambda found=capability: [(9, 0), found])
        problems = list(determinism_problems(EXACT, on_gpu=True))
        assert len(problems) == num_problems
        assert all("compute capability 7.5" in problem for problem in problems)
    assert not list(determinism_problems(replace(EXACT, engine_threads=2), on_gpu=True))


def test_the_start_screen_says_what_is_promised_and_what_may_vary() -> None:
    assert "one thread an engine" in next(determinism_lines(resolve(EXACT, LAPTOP)))
    assert "batch-invariant kernels" in next(determinism_lines(resolve(EXACT, ONE_GPU)))
    calm = " ".join(determinism_lines(resolve(Config(), LAPTOP)))
    assert "what the clock ends" in calm
    assert "last bits" not in calm
    for varying in (
        resolve(Config(engine_threads=2), LAPTOP),
        resolve(Config(), ONE_GPU),
    ):
        assert "log-probs in their last bits" in " ".join(determinism_lines(varying))


def test_an_exact_learner_uses_only_kernels_that_repeat_themselves(tmp_path: Path) -> None:
    spec = make_learner_spec(resolve(EXACT, LAPTOP), ALGORITHMS["grpo"], run_name="run", incidents="")
    assert spec.exact
    model = str(make_tiny_model(tmp_path, tied=True, num_layers=1))
    tiny = LearnerSpec(model=model, algorithm=ALGORITHMS["grpo"], learning_rate=0.1, num_updates=1)
    Learner(replace(tiny, exact=True))
    assert torch.are_deterministic_algorithms_enabled()
    Learner(tiny)
    assert not torch.are_deterministic_algorithms_enabled()
