"""Parameters that may be sharded, one at a time: the whole of one, what a rank holds, a new value.

A parameter is whole (plain torch, ZeRO 1 and 2), a DTensor (FSDP2), or one that DeepSpeed has partitioned
(ZeRO 3: it has a `ds_id`); a frozen one may be in 4 bits (rl/model_nf4.py: it has a
`quant_state`). `whole` and `assign` are collectives where it is sharded: every rank must call them, in one
order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, detached; the tensor itself where it is not sharded, else a copy that is gathered.

    Of a tensor in 4 bits what it stands for, in float32.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach()
    if hasattr(tensor, "ds_id"):
        from rl.backends.zero import gathered  # DeepSpeed is imported only where it is used

        return gathered(tensor)
    if is_quantized(tensor):
        from rl.model_nf4 import dequantized  # and so is bitsandbytes

        return dequantized(tensor)
    return tensor.detach()


def is_quantized(tensor: Any) -> bool:
    """Whether a parameter is held in 4 bits: frozen, and its data are codes."""
    return getattr(tensor, "quant_state", None) is not None


def num_elements(tensor: Any) -> int:
    """How many numbers the whole of a tensor has."""
    if is_quantized(tensor):
        return tensor.quant_state.shape.numel()
    return getattr(tensor, "ds_numel", tensor.numel())


def num_held(tensor: Any) -> int:
    """How many of them this rank holds."""
    return num_elements(tensor) if is_quantized(tensor) else local(tensor).numel()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, detached; in place."""
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return getattr(tensor, "ds_tensor", tensor).detach()


@torch.no_grad()
def assign(tensor: Tensor, value: Tensor) -> None:
    """Give a tensor the values of `value`, which is whole and the same on every rank."""
    if isinstance(tensor, DTensor):
        local(tensor).copy_(like(tensor, value).to_local())
    elif hasattr(tensor, "ds_id"):
        local(tensor).copy_(partition(value, local(tensor)))
    else:
        tensor.copy_(value)
    renew_master(tensor)


@torch.no_grad()
def put_back(tensor: Tensor, kept: Tensor) -> None:
    """Undo what changed a tensor since `kept` was copied from its `local` part."""
    local(tensor).copy_(kept)
    renew_master(tensor)


def like(tensor: DTensor, value: Tensor) -> DTensor:
    """`value`, the same on every rank, sharded as `tensor` is. Nothing is sent."""
    mesh = tensor.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, tensor.placements, src_data_rank=None)


def partition(value: Tensor, held: Tensor) -> Tensor:
    """The flat part of `value` that this rank holds in `held`; the last rank's is filled up with zeros."""
    start = torch.distributed.get_rank() * held.numel()
    part = value.reshape(-1)[start : start + held.numel()].to(held)
    return torch.nn.functional.pad(part, (0, held.numel() - part.numel())).view_as(held)


def renew_master(tensor: Any) -> None:
    """Tell DeepSpeed that a parameter has changed: it keeps a copy that it steps from."""
    if hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"):
        from rl.backends.zero import take_over

        take_over(tensor)
