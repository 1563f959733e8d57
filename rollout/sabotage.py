"""Drills: break a weight load on purpose, to see that the run notices and names what was broken.

A checker nobody has seen fail is not a checker. `--sabotage NAME` performs one of these at the first sync;
the run must stop and name the tensor. In every real run the drill is the empty string and `load` just loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

DRILLS = {
    "skip_tensor": "one whole tensor is never loaded",
    "skip_fused_half": "one part of a fused layer (k_proj of qkv_proj) is never loaded",
    "swap_rows": "two rows of one tensor change places",
    "no_retie": "the head of a tied model keeps its own packed copy",
    "dead_copy": "everything is loaded, into a copy that does not serve",
}
ADAPTER_DRILLS = {"no_adapter": "the adapter is loaded, and requests are answered without it"}

Weights = Iterable[tuple[str, torch.Tensor]]


def load(drill: str, model: nn.Module, weights: Weights) -> None:
    """`model.load_weights(weights)`, broken as `drill` says."""
    if drill == "dead_copy":
        dict(weights)
        return
    model.load_weights(_broken(drill, weights))  # pyright: ignore[reportCallIssue]  (every vLLM model has it)


def _broken(drill: str, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    victim = {
        "skip_tensor": "down_proj.weight",
        "skip_fused_half": "k_proj.weight",
        "swap_rows": "o_proj.weight",
    }
    pending = victim.get(drill, "")
    for name, tensor in weights:
        if pending and name.endswith(pending):
            pending = ""
            if drill != "swap_rows":
                continue
            tensor = tensor.clone()
            tensor[[0, 1]] = tensor[[1, 0]]
        yield name, tensor
