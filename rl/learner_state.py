"""What a learner is made of besides the policy's weights: taken for a checkpoint, put back by a resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rl.backends.tensors import assign, whole
from rl.checkpoint import CheckpointError, LearnerState, load_learner_state
from rl.model import load_causal_lm

if TYPE_CHECKING:
    from rl.backends.base import Steps
    from rl.learner import Learner

NUM_NAMED = 5
"""Parameters that an error names before it counts the rest."""


def learner_state(learner: Learner) -> LearnerState:
    """Optimizer, schedule, loss scale, critic and torch's random state of a learner.

    Every tensor is whole, whatever the number of ranks, and under its parameter's name: any backend resumes
    from it. All ranks must call this; what others than the main one return is not complete.
    """
    keeps = learner.backend.is_main
    tensors: dict[str, Tensor] = {}
    for name, tensor in _critic_tensors(learner):
        gathered = whole(tensor)
        tensors |= {f"critic.{name}": gathered.cpu()} if keeps else {}
    for name, parameter in learner.trained.named_parameters():
        for moment, value in learner.backend.moments(learner.optimizer, parameter).items():
            tensors |= {f"adamw.{name}.{moment}": value.cpu()} if keeps else {}
    tensors["rng.cpu"] = torch.get_rng_state()
    if learner.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(learner.device)
    numbers = _optimizer_numbers(learner.optimizer)
    if learner.adapter is not None:
        numbers["base"] = {"model": learner.adapter.base, "crc32": learner.adapter.base_crc32}
    return LearnerState(tensors=tensors, numbers=numbers)


@torch.no_grad()
def restore_learner(learner: Learner, path: Path) -> None:
    """Make `learner` what it was when the checkpoint `path` was saved; its reference and teacher stay.

    Raises:
        CheckpointError: the checkpoint is of a learner with other parameters; those that differ are named.
    """
    state = load_learner_state(path)
    _restore_policy(learner, path, state.numbers)
    for name, tensor in _critic_tensors(learner):
        assign(tensor, _of(state, f"critic.{name}"))
    _restore_optimizer(learner, state)
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
        saved = load_causal_lm(str(path))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} holds no whole model: {error}") from error
    own = dict(learner.model.named_parameters()) | dict(learner.model.named_buffers())
    new = dict(saved.named_parameters()) | dict(saved.named_buffers())
    _require_same(own, new, str(path))
    for name, tensor in own.items():
        assign(tensor, new[name])


def _require_same(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: str) -> None:
    """Raise CheckpointError with the tensors that only one has, or that have another shape."""
    shapes = {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in own.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    kinds = {
        "only in the checkpoint": [name for name in theirs if name not in shapes],
        "only in this run's model": [name for name in shapes if name not in theirs],
        "of another shape": [
            f"{name} {theirs[name]}, here {shapes[name]}"
            for name in theirs
            if name in shapes and theirs[name] != shapes[name]
        ],
    }
    if lines := [f"{what}: {_some(names)}" for what, names in kinds.items() if names]:
        raise CheckpointError(
            f"checkpoint {path} is of another architecture than this run's model: {'; '.join(lines)}. "
            "Resume the run that it is of"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def _critic_tensors(learner: Learner) -> list[tuple[str, Tensor]]:
    modules: dict[str, nn.Module | None] = {"head": learner.policy.value_head, "body": learner.critic}
    return [
        (f"{part}.{name}", tensor)
        for part, module in modules.items()
        if module is not None
        for name, tensor in module.state_dict(keep_vars=True).items()
    ]


def _optimizer_numbers(optimizer: Steps) -> dict[str, Any]:
    schedule = optimizer.schedule.state_dict()
    return {
        "num_updates": optimizer.num_updates,
        "learning_rates": [group["lr"] for group in optimizer.adamw.param_groups],
        "schedule": {name: schedule[name] for name in ("last_epoch", "_step_count", "_last_lr")},
        "loss_scale": optimizer.scaler.state_dict(),
    }


def _restore_optimizer(learner: Learner, state: LearnerState) -> None:
    optimizer = learner.optimizer
    parameters = dict(learner.trained.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "adamw":
            name, _, moment = rest.rpartition(".")
            moments.setdefault(name, {})[moment] = tensor
    rates = state.numbers["learning_rates"]
    strange = [name for name in moments if name not in parameters]
    if strange or len(rates) != len(optimizer.adamw.param_groups):
        raise CheckpointError(
            f"the checkpoint's optimizer is not that of this learner: it has {len(rates)} groups of "
            f"parameters, this one {len(optimizer.adamw.param_groups)}, and there is no {_some(strange)} here"
        )
    for group, rate in zip(optimizer.adamw.param_groups, rates, strict=True):
        group["lr"] = rate
    learner.backend.set_moments(optimizer, {parameters[name]: each for name, each in moments.items()})
    lambdas = [None] * len(optimizer.adamw.param_groups)  # functions, which LambdaLR does not save
    optimizer.schedule.load_state_dict({**state.numbers["schedule"], "lr_lambdas": lambdas})
    optimizer.scaler.load_state_dict(state.numbers["loss_scale"])
    optimizer.num_updates = state.numbers["num_updates"]


def _of(state: LearnerState, name: str) -> Tensor:
    if name not in state.tensors:
        raise CheckpointError(f"the checkpoint holds no {name}: it is of a run with another critic or device")
    return state.tensors[name]
