"""Where learner and engines sit on GPUs, by weight channel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipes.placement import gpu_shares, make_engine_specs
from rl.config import Config
from rl.defaults import resolve
from rl.machine import Machine
from rl.validation import ConfigError, validate

LAPTOP = Machine(host="here", cores=8, memory_bytes=2**34, gpus=())
ONE_GPU = replace(LAPTOP, gpus=("GPU",))
THREE_GPUS = replace(LAPTOP, gpus=("GPU",) * 3)


def test_nccl_gives_everyone_a_gpu_and_the_others_share_one():
    assert gpu_shares(resolve(Config(), LAPTOP)) == (0.0, 0.0)
    for config, machine in [
        (Config(engines=2), ONE_GPU),
        (Config(engines=2, sync_backend="shm"), THREE_GPUS),
    ]:
        assert gpu_shares(resolve(config, machine)) == (0.5, 0.25)  # 0.5 + 2 x 0.25 = 1
    apart = resolve(Config(engines=2), THREE_GPUS)
    assert (apart.sync_backend, gpu_shares(apart)) == ("nccl", (1.0, 1.0))
    assert [spec.num_gpus for spec in make_engine_specs(apart)] == [1.0, 1.0]


def test_nccl_is_neither_chosen_nor_allowed_without_a_gpu_for_everyone():
    assert resolve(Config(engines=3), THREE_GPUS).sync_backend == "ipc"
    with pytest.raises(ConfigError, match="for engines = 3, and there are 3"):
        validate(Config(engines=3, sync_backend="nccl"), THREE_GPUS)
    validate(Config(engines=2, sync_backend="nccl"), THREE_GPUS)


def test_a_drill_that_the_channel_cannot_perform_is_refused():
    with pytest.raises(
        ConfigError, match=r"sabotage = 'swap_rows' .* this run uses ipc; add sync_backend shm"
    ):
        validate(Config(sabotage="swap_rows"), ONE_GPU)
    validate(Config(sabotage="swap_rows", sync_backend="shm"), ONE_GPU)
    validate(Config(sabotage="swap_rows"), LAPTOP)
    validate(Config(sabotage="perturb_learner"), ONE_GPU)
