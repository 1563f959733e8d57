"""From a recipe's settings to those of a run: what a short run has instead, and what "auto" is here."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from rewards.base import default_workers, is_users
from rl.config import Config
from rl.conversions import converted
from rl.lora_settings import resolved_lora
from rl.machine import Machine

C = TypeVar("C", bound=Config)

SMOKE = {
    "num_steps": 3,
    "warmup_steps": 0,
    "num_groups": 4,
    "group_size": 4,
    "num_minibatches": 1,
    "micro_batch_size": 16,
    "eval_tasks": 32,
    "show_every": 2,
}


def with_smoke_defaults(config: C) -> C:
    """`config` as a short run: other defaults, which the command line may override in turn."""
    return replace(config, smoke=True, **SMOKE)


def resolve(config: C, machine: Machine) -> C:
    """`config` with every "auto" replaced by what this machine gives, and our names for others' values.

    What is set already stays.
    """
    device = _chosen(config.device, "cuda" if machine.gpus else "cpu")
    on_gpu = device == "cuda"
    # Several ranks have a GPU each and the engines others, so they meet in no GPU.
    gpu_backend = "nccl" if len(machine.gpus) > config.engines or config.backend != "plain" else "ipc"
    overrides, _ = converted(config.overrides)
    lora = resolved_lora(config, on_gpu=on_gpu)
    # An adapter goes by files, whatever the device, and no other weights go at all.
    automatic = gpu_backend if on_gpu and lora.get("lora_sync") != "adapter" else "shm"
    return replace(
        config,
        **overrides,
        **lora,
        device=device,
        engine_dtype=_chosen(config.engine_dtype, "bfloat16" if on_gpu else "float32"),
        sync_backend=_chosen(config.sync_backend, automatic),
        engine_threads=config.engine_threads or 1,
        learner_threads=config.learner_threads or min(max(1, machine.cores // config.learner_ranks), 8),
        zero_stage=config.zero_stage or (3 if config.backend == "deepspeed" else 0),
        reward_workers=config.reward_workers or _reward_workers(config, machine),
        num_concurrent=config.num_concurrent or -(-config.num_trajectories // config.engines),
        save_every=config.save_every or max(1, config.num_steps // 10),
    )


def _reward_workers(config: Config, machine: Machine) -> int:
    """One a core, up to 8, where the reward runs in child processes; else none."""
    return default_workers(machine.cores) if is_users(config.reward) else 0


def _chosen(value: str, automatic: str) -> str:
    return automatic if value == "auto" else value
