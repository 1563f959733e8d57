"""A model with a LoRA adapter beside it: what it is made of, and which adapters fit it.

The arithmetic is here and needs no peft; what peft does, puts an adapter beside a model, is in
rl/model_lora.py. peft keeps the frozen weight of an adapted layer as `<layer>.base_layer.weight`, and the
adapter beside it as `<layer>.lora_A.<adapter>.weight` (rank, in) and `<layer>.lora_B.<adapter>.weight`
(out, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from envs.names import unknown_name
from rl.layout import PaddedLayout
from rl.lora_settings import ALL_LINEAR
from rl.model import PolicyModel, has_router, meta_model
from rl.outputs import TokenOutputs

if TYPE_CHECKING:
    from rl.config import Config
    from rl.learner_spec import LearnerSpec
    from rl.model_lora import Adapter

POLICY = "default"
"""peft's name of the adapter that is trained."""

REFERENCE = "reference"
"""Of the frozen copy of a starting adapter."""

BASE = ".base_layer"
PREFIX = "base_model.model."
"""Of every name in a file of peft's."""

MAX_NAMED = 4
"""Differences that an error names; the others it counts."""


def start_adapter(model: Any, spec: LearnerSpec) -> Adapter | None:
    """The adapter of `spec`, put beside the layers of `model`, which is frozen; None where spec.lora is None.

    Raises:
        ValueError: the targets match no module, or the starting adapter is of another base.
    """
    if spec.lora is None:
        return None
    # peft takes a second to import, and a learner without an adapter never needs it.
    from rl.model_lora import Adapter

    return Adapter(model, spec.lora, base=spec.model)


Scorer = Callable[[PaddedLayout], TokenOutputs]
"""What scores a layout: a policy, or a policy as it was."""


def reference_of(policy: PolicyModel, adapter: Adapter | None, load: Callable[[], PolicyModel]) -> Scorer:
    """The policy that training starts from: loaded a second time, or the frozen base of an adapter.

    The latter is the policy itself with its adapter taken away, or set to what it began as.
    """
    if adapter is None:
        return load()

    def score(layout: PaddedLayout) -> TokenOutputs:
        with adapter.as_reference():
            return policy(layout)

    return score


def is_of_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to the base."""
    return any(part.startswith("lora_") for part in name.split("."))


def whole_tensors(model: nn.Module, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the model without adapters, by the name that it has without them.

    Args:
        merged: with what the trained adapter adds, W + scale * B @ A, computed afresh: the base stays as it
            is. False: W itself.
    """
    for name, parameter in model.named_parameters():
        if is_of_adapter(name):
            continue
        path, _, leaf = name.rpartition(".")
        if not path.endswith(BASE):
            yield name, parameter.detach()
            continue
        path = path.removesuffix(BASE)
        layer: Any = model.get_submodule(path)
        is_adapted = merged and leaf == "weight"
        yield f"{path}.{leaf}", added(layer, parameter) if is_adapted else parameter.detach()


@torch.no_grad()
def added(layer: Any, weight: Tensor) -> Tensor:
    """W + scale * B @ A of one adapted linear layer, (out, in), a new tensor in W's dtype."""
    down, up = layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=layer.scaling[POLICY]).to(weight.dtype)


def fit_problems(config: Config) -> Iterator[str]:
    """Why the adapter of a resolved `config` cannot be beside its model; only shapes are read."""
    if not config.trains_adapter:
        return
    model = meta_model(config.model)
    if config.lora_adapter:
        from rl.model_lora import adapter_problems  # with peft, as above

        yield from adapter_problems(model, config.lora_adapter, config.model)
    else:
        yield from target_problems(model, config.target_names)
    if config.lora_sync == "adapter" and has_router(model):
        yield (
            f"lora_sync = 'adapter': model {config.model} is a mixture of experts, whose adapters engines "
            "are not given here; use lora_sync merged"
        )


def num_trained(config: Config, num_parameters: int) -> int:
    """How many of the model's `num_parameters`, or of its adapter, are trained; 0 for a starting adapter."""
    if not config.trains_adapter:
        return num_parameters
    targets = config.target_names
    return config.lora_rank * sum(
        layer.in_features + layer.out_features
        for name, layer in linear_layers(meta_model(config.model)).items()
        if targets == (ALL_LINEAR,) or any(_is_named(name, target) for target in targets)
    )


def served_shape(config: Config) -> tuple[int, tuple[str, ...]]:
    """What an engine makes room for: the adapter's largest rank, and the last parts of its modules' names."""
    if config.lora_adapter:
        from rl.model_lora import shape_of  # with peft, as above

        return shape_of(config.lora_adapter)
    targets = config.target_names
    names = linear_names(meta_model(config.model)) if targets == (ALL_LINEAR,) else targets
    return config.lora_rank, tuple(sorted({name.rpartition(".")[2] for name in names}))


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Every linear layer but the head, by name: what an adapter may be beside."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def linear_names(model: Any) -> list[str]:
    """The last part of the name of each of them, once."""
    return sorted({name.rpartition(".")[2] for name in linear_layers(model)})


def target_problems(model: Any, targets: Sequence[str]) -> Iterator[str]:
    """Targets that no linear layer of `model` (meta will do) is named like; the nearest is named."""
    layers = linear_layers(model)
    if tuple(targets) == (ALL_LINEAR,):
        if not layers:
            yield f"lora_targets = {ALL_LINEAR}: the model has no linear layer besides its head"
        return
    ends = linear_names(model)
    for target in targets:
        if any(_is_named(name, target) for name in layers):
            continue
        if any(_is_named(name, target) for name, _ in model.named_modules()):
            yield (
                f"lora_targets: {target!r} is a module of the model and no linear layer beside which an "
                f"adapter can be (the head is none either); known: {', '.join(ends)}"
            )
        else:
            yield f"lora_targets: {unknown_name('module', target, ends)}"


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def shape_problems(model: Any, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Where an adapter of these tensors (peft's name -> shape) does not fit `model`; each as a phrase."""
    layers = linear_layers(model)
    problems = []
    for name, shape in sorted(shapes.items()):
        path, _, part = name.removeprefix(PREFIX).partition(".lora_")
        layer = layers.get(path)
        if layer is None:
            problems.append(f"it adapts {path}, which the model lacks")
            continue
        axis, width = (1, layer.in_features) if part.startswith("A") else (0, layer.out_features)
        if len(shape) != 2 or shape[axis] != width:
            problems.append(f"{path}.lora_{part} has shape {list(shape)}, the model's layer takes {width}")
    return list(dict.fromkeys(problems))


def told(problems: Sequence[str]) -> str:
    """The first problems, and how many more there are."""
    more = len(problems) - MAX_NAMED
    return "; ".join(problems[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def differing_keys(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """How two state dicts differ in names and shapes; each difference as a phrase."""
    return [
        *(f"it lacks {name}" for name in ours if name not in theirs),
        *(f"it has {name}, which is none of ours" for name in theirs if name not in ours),
        *(
            f"{name} has shape {list(tensor.shape)}, ours {list(ours[name].shape)}"
            for name, tensor in theirs.items()
            if name in ours and tensor.shape != ours[name].shape
        ),
    ]
