"""What is refused of a learner of several ranks before anything starts, and what its start screen tells."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from recipes.placement import communicators, gpu_shares, held, rank_names
from rl.config import Config
from rl.defaults import resolve
from rl.machine import Machine
from rl.resume import changed_settings
from rl.validation import ConfigError, validate

LAPTOP = Machine(host="here", cores=4, memory_bytes=2**34, gpus=())
FOUR_GPUS = replace(LAPTOP, gpus=("GPU",) * 4)


def refusal(machine: Machine, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Config(**fields), machine)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"learner_ranks": 2}, "learner_ranks = 2 with backend = 'plain': plain torch is one rank; use fsdp"),
        (
            {"zero_stage": 3},
            "zero_stage = 3 with backend = 'plain': only deepspeed has ZeRO stages; leave it",
        ),
        ({"zero_stage": 2, "backend": "fsdp"}, "zero_stage = 2 with backend = 'fsdp'"),
        ({"zero_stage": 4, "backend": "deepspeed"}, "zero_stage = 4: expected at least 0 and at most 3"),
        ({"backend": "fdsp"}, "unknown choice 'fdsp'; did you mean 'fsdp'?"),
        ({"backend": "fsdp", "learner_ranks": 0}, "learner_ranks = 0: expected at least 1"),
        ({"backend": "fsdp", "device": "cuda", "learner_ranks": 2}, "torch sees no GPU on this machine"),
        (
            {"backend": "fsdp", "learner_ranks": 2, "learner_threads": 3},
            "learner_ranks x learner_threads = 6 needs 6 cores and there are 4",
        ),
        ({"backend": "fsdp", "learner_ranks": 5}, "= 5 needs 5 cores and there are 4"),
        ({"backend": "fsdp", "determinism": "exact"}, "use plain or fast"),
        (
            {"backend": "deepspeed", "algorithm": "ppo"},
            "it has a critic, whose gradient norm is clipped apart",
        ),
        (
            {"optimizer_offload": "cpu"},
            "optimizer_offload = 'cpu' has no effect without a GPU: the optimizer's state lies in main",
        ),
        ({"optimizer_offload": "cpu", "backend": "fsdp"}, "'cpu' has no effect without a GPU"),
        ({"optimizer_offload": "cpu", "backend": "deepspeed"}, "has no effect without a GPU"),
        ({"optimizer_offload": "nvme"}, "unknown choice 'nvme'"),
        ({"backend": "deepspeed", "learner_dtype": "float16"}, "its loss scale is not ours; use bfloat16"),
    ],
)
def test_what_a_backend_has_not_is_refused(fields: dict[str, Any], expected: str) -> None:
    assert expected in refusal(LAPTOP, **fields)


def test_each_rank_and_each_engine_needs_a_gpu() -> None:
    fields = {"backend": "fsdp", "learner_ranks": 3, "engines": 2}
    assert "learner_ranks = 3 and engines = 2 need 5 GPUs, one each, and there are 4" in refusal(
        FOUR_GPUS, **fields
    )
    assert "use nccl, shm or auto" in refusal(FOUR_GPUS, backend="fsdp", sync_backend="ipc")
    fits = resolve(Config(backend="fsdp", learner_ranks=3), FOUR_GPUS)
    validate(fits, FOUR_GPUS)
    assert (fits.sync_backend, gpu_shares(fits)) == ("nccl", (1.0, 1.0))


@pytest.mark.parametrize("backend", ["plain", "fsdp"])
def test_on_a_gpu_the_optimizer_can_be_offloaded(backend: Any) -> None:
    validate(resolve(Config(backend=backend, optimizer_offload="cpu"), FOUR_GPUS), FOUR_GPUS)


def test_offload_has_no_effect_where_the_gpu_is_left_alone() -> None:
    assert "has no effect without a GPU" in refusal(FOUR_GPUS, device="cpu", optimizer_offload="cpu")


def test_without_a_compiler_deepspeed_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    told = refusal(LAPTOP, backend="deepspeed")
    assert "there is no C++ compiler (no-such-compiler); install g++ (apt-get install g++" in told
    validate(Config(backend="fsdp"), LAPTOP)  # which needs none


def test_without_deepspeed_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.backend_checks.find_spec", lambda name: None)
    assert "the package deepspeed is not installed; bring it in with `make install`" in refusal(
        LAPTOP, backend="deepspeed"
    )


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_auto_is_zero_3_and_the_cores_are_shared() -> None:
    config = resolve(Config(backend="deepspeed", learner_ranks=2), LAPTOP)
    assert (config.zero_stage, config.learner_threads) == (3, 2)
    validate(config, LAPTOP)
    assert resolve(config, LAPTOP) == config
    assert resolve(Config(backend="deepspeed", zero_stage=1), LAPTOP).zero_stage == 1
    assert resolve(Config(), LAPTOP).zero_stage == 0


def test_a_resumed_run_may_have_other_ranks() -> None:
    recorded = resolve(Config(backend="deepspeed", learner_ranks=2), LAPTOP)
    plain = replace(recorded, backend="plain", learner_ranks=1, zero_stage=0)
    assert list(changed_settings(recorded, plain)) == []
    assert list(changed_settings(recorded, replace(plain, optimizer_offload="cpu"))) == []
    assert list(changed_settings(recorded, replace(plain, seed=1))) != []


def test_the_start_screen_names_ranks_and_communicators() -> None:
    config = resolve(Config(backend="deepspeed", learner_ranks=2), LAPTOP)
    assert rank_names(config) == ["learner 0", "learner 1"]
    assert [(link.name, link.by) for link in communicators(config)] == [
        ("gradients", "gloo, reduce-scatter (DeepSpeed ZeRO 3)"),
        ("weights", "gloo, all-gather (DeepSpeed ZeRO 3)"),
        ("passes", "gloo, all-reduce of one number"),
    ]
    assert held(config, {"held_parameters": 50.0, "num_parameters": 100.0}) == ", holds 50 of 100 parameters"
    assert rank_names(resolve(Config(), LAPTOP)) == ["learner"]
