"""What a learner is made of besides the policy's weights: taken for a checkpoint, put back by a resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rl.checkpoint import CheckpointError, LearnerState, load_learner_state
from rl.lora import differing_keys, told
from rl.model import load_causal_lm

if TYPE_CHECKING:
    from rl.learner import Learner
    from rl.optimizer import Optimizer


def learner_state(learner: Learner) -> LearnerState:
    """Optimizer, schedule, loss scale, critic and torch's random state of a learner."""
    tensors = {f"critic.{name}": tensor for name, tensor in _critic_tensors(learner)}
    moments, numbers = _optimizer_state(learner.optimizer)
    if learner.adapter is not None:
        numbers["base"] = {"model": learner.adapter.base, "crc32": learner.adapter.base_crc32}
    tensors |= moments | {"rng.cpu": torch.get_rng_state()}
    if learner.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(learner.device)
    return LearnerState(tensors=tensors, numbers=numbers)


@torch.no_grad()
def restore_learner(learner: Learner, path: Path) -> None:
    """Make `learner` what it was when the checkpoint `path` was saved; its reference and teacher stay.

    Raises:
        CheckpointError: the checkpoint is of a learner with other parameters.
    """
    state = load_learner_state(path)
    _restore_policy(learner, path, state.numbers)
    for name, tensor in _critic_tensors(learner):
        tensor.copy_(_of(state, f"critic.{name}"))
    _restore_optimizer(learner.optimizer, state)
    torch.set_rng_state(_of(state, "rng.cpu"))
    if learner.device.type == "cuda":
        torch.cuda.set_rng_state(_of(state, "rng.cuda"), learner.device)


def _restore_policy(learner: Learner, path: Path, numbers: Mapping[str, Any]) -> None:
    """The policy's weights, or its adapter's, out of a checkpoint."""
    adapter = learner.adapter
    if adapter is not None:
        adapter.load(path)
        adapter.require_base(numbers, path)
        return
    try:
        saved = load_causal_lm(str(path)).state_dict()
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} holds no whole model: {error}") from error
    if problems := differing_keys(learner.model.state_dict(), saved):
        raise CheckpointError(f"checkpoint {path} is of another architecture: {told(problems)}")
    learner.model.load_state_dict(saved)


def _critic_tensors(learner: Learner) -> list[tuple[str, Tensor]]:
    modules: dict[str, nn.Module | None] = {"head": learner.policy.value_head, "body": learner.critic}
    return [
        (f"{part}.{name}", tensor)
        for part, module in modules.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    ]


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved = optimizer.adamw.state_dict()
    tensors = {
        f"adamw.{index}.{name}": value
        for index, each in saved["state"].items()
        for name, value in each.items()
    }
    schedule = optimizer.schedule.state_dict()
    return tensors, {
        "num_updates": optimizer.num_updates,
        "learning_rates": [group["lr"] for group in saved["param_groups"]],
        "schedule": {name: schedule[name] for name in ("last_epoch", "_step_count", "_last_lr")},
        "loss_scale": optimizer.scaler.state_dict(),
    }


def _restore_optimizer(optimizer: Optimizer, state: LearnerState) -> None:
    saved = optimizer.adamw.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.tensors.items():
        kind, *rest = key.split(".")
        if kind == "adamw":
            moments.setdefault(int(rest[0]), {})[rest[1]] = tensor
    for group, rate in zip(saved["param_groups"], state.numbers["learning_rates"], strict=True):
        group["lr"] = rate
    try:
        optimizer.adamw.load_state_dict(
            {"state": dict(sorted(moments.items())), "param_groups": saved["param_groups"]}
        )
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's optimizer is not that of this learner: {error}") from error
    lambdas = [None] * len(saved["param_groups"])  # functions, which LambdaLR does not save
    optimizer.schedule.load_state_dict({**state.numbers["schedule"], "lr_lambdas": lambdas})
    optimizer.scaler.load_state_dict(state.numbers["loss_scale"])
    optimizer.num_updates = state.numbers["num_updates"]


def _of(state: LearnerState, name: str) -> Tensor:
    if name not in state.tensors:
        raise CheckpointError(f"the checkpoint holds no {name}: it is of a run with another critic or device")
    return state.tensors[name]
