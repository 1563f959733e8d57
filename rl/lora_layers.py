"""The arithmetic of layers with a LoRA adapter beside them, as peft holds them.

peft keeps the frozen weight of an adapted layer as `<layer>.base_layer.weight`, and the adapter beside it as
`<layer>.lora_A.<adapter>.weight` (rank, in) and `<layer>.lora_B.<adapter>.weight` (out, rank); of an
embedding (V, H) as `lora_embedding_A.<adapter>` (rank, V) and `lora_embedding_B.<adapter>` (H, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rl.backends.tensors import whole

POLICY = "default"
"""peft's name of the adapter that is trained."""

BASE = ".base_layer"


def is_of_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to the base."""
    return any(part.startswith("lora_") for part in name.split("."))


def weight_of(layer: Any) -> Tensor:
    """What a layer multiplies with, (out, in): what its adapter adds is in it, with its gradient."""
    if getattr(layer, "lora_A", None) is None or layer.disable_adapters:
        return layer.weight
    return added(layer, layer.weight, lambda tensor: tensor)


def added(layer: Any, weight: Tensor, get: Callable[[Tensor], Tensor]) -> Tensor:
    """W + scale * B @ A of an adapted layer, a new tensor in W's shape and dtype.

    Args:
        weight: W, whole.
        get: makes B and A whole: nothing is to be done inside a forward, where sharded weights are gathered.
    """
    if POLICY in layer.lora_embedding_A:
        down, up = get(layer.lora_embedding_B[POLICY]).T, get(layer.lora_embedding_A[POLICY]).T
    else:
        down, up = get(layer.lora_A[POLICY].weight), get(layer.lora_B[POLICY].weight)
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=layer.scaling[POLICY]).to(weight.dtype)


@torch.no_grad()
def whole_tensors(model: nn.Module, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the model without adapters, by the name that it has without them.

    Sharded ones are gathered one by one: every rank must go through all of them.

    Args:
        merged: with what the trained adapter adds, W + scale * B @ A, computed afresh: the base stays as it
            is. False: W itself. A W that is held in 4 bits is what its codes stand for, in float32.
    """
    for name, parameter in model.named_parameters():
        if is_of_adapter(name):
            continue
        path, _, leaf = name.rpartition(".")
        if not path.endswith(BASE):
            yield name, whole(parameter)
            continue
        path = path.removesuffix(BASE)
        layer: Any = model.get_submodule(path)
        is_adapted = merged and leaf == "weight"
        weight = whole(parameter)
        yield f"{path}.{leaf}", added(layer, weight, whole) if is_adapted else weight


def share_gradients(model: nn.Module) -> bool:
    """Let the adapter of a tied head and that of the embedding learn as the one that they are.

    peft makes them two parameters over one memory; the head's gradient is added to the embedding's here, so
    that an optimizer sees the sum, and only once. Returns whether there are any such.
    """
    modules: list[Any] = list(model.modules())
    tables = {
        parameter.data_ptr(): parameter
        for module in modules
        for kind in ("lora_embedding_A", "lora_embedding_B")
        if POLICY in (held := getattr(module, kind, {}))
        for parameter in [held[POLICY]]
    }
    twins: list[tuple[nn.Parameter, nn.Parameter]] = [
        (twin, table)
        for module in modules
        for kind in ("lora_A", "lora_B")
        if POLICY in (held := getattr(module, kind, {}))
        for twin in [held[POLICY].weight]
        if (table := tables.get(twin.data_ptr())) is not None
    ]
    for twin, table in twins:
        twin.register_post_accumulate_grad_hook(_adder(table))
    return bool(twins)


def _adder(table: nn.Parameter) -> Any:
    def add(twin: Tensor) -> None:
        assert twin.grad is not None
        table.grad = twin.grad.T.clone() if table.grad is None else table.grad + twin.grad.T
        twin.grad = None

    return add
