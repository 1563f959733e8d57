"""What a mixture's layer serves, expert by expert, under the names of the checkpoint.

vLLM keeps the experts of a layer in two tensors (gate and up in one, down in the other), and its CPU kernel
computes with a permuted copy of them. The permutation is read off the packing kernel itself, which is given
the numbers of the elements to pack; undone, it shows every weight exactly as it is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from rollout.manifest import WeightSyncError
from rollout.weight_sketch import Sketch, sketch_tensor

_READABLE = {"CPU", "TRITON", "BATCHED_TRITON", "FLASHINFER_CUTLASS"}
"""vLLM's kernels for unquantized experts whose arrangement of the weights is known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedExpert:
    """One projection of one expert: rows from `start` on of what the layer has under `attribute`."""

    name: str
    module: Any  # vLLM's RoutedExperts
    attribute: str
    expert: int
    start: int
    shape: tuple[int, int]

    def sketch(self, seed: int) -> Sketch:
        """Of the weights that the layer's kernel computes with."""
        matrix = getattr(self.module, self.attribute)[self.expert]
        if (isa := _packing(self.module)) is not None:
            unpacked = torch.empty_like(matrix).flatten()
            unpacked[_packed_order(matrix.shape, matrix.dtype, isa)] = matrix.flatten()
            matrix = unpacked.reshape(matrix.shape)
        rows, columns = self.shape
        return sketch_tensor(matrix[self.start : self.start + rows, :columns], seed)


def is_mixture(module: nn.Module) -> bool:
    """Whether a vLLM layer holds the routed experts of a mixture."""
    return hasattr(module, "ckpt_gate_proj_name")


def served_experts(path: str, module: Any) -> Iterator[ServedExpert]:
    """Every projection of every expert of one layer.

    Args:
        path: where the layer is in vLLM's model, "model.layers.0.mlp.experts.routed_experts".
        module: vLLM's RoutedExperts.

    Raises:
        WeightSyncError: the layer arranges its weights in a way that is not known here; the message says
            what was found.
    """
    found = sorted(name for name, parameter in module._parameters.items() if parameter is not None)
    kernel = getattr(getattr(module.quant_method, "unquantized_backend", None), "name", "a quantized kernel")
    config = module.moe_config
    inner, hidden = config.intermediate_size_per_partition_unpadded, config.hidden_dim_unpadded
    problems = [
        f"it has the parameters {found}" if found != ["w13_weight", "w2_weight"] else "",
        f"its kernel is {kernel}, not one of {sorted(_READABLE)}" if kernel not in _READABLE else "",
        "its experts have no gate" if module.ckpt_up_proj_name is None else "",
        f"it holds {module.local_num_experts} of {module.global_num_experts} experts"
        if module.local_num_experts != module.global_num_experts
        else "",
        f"its kernel pads the experts' inner size {inner}: make it a multiple of 32"
        if tuple(module.w2_weight.shape[1:]) != (hidden, inner)
        else "",
    ]
    if any(problems):
        reasons = "; ".join(problem for problem in problems if problem)
        raise WeightSyncError(f"cannot prove what the experts at {path} serve: {reasons}")
    gate, up = (0, inner) if kernel != "FLASHINFER_CUTLASS" else (inner, 0)  # that kernel wants up first
    prefix = path.removesuffix(".routed_experts")
    for expert in range(module.local_num_experts):
        for leaf, attribute, start, shape in (
            (module.ckpt_gate_proj_name, "w13_weight", gate, (inner, hidden)),
            (module.ckpt_up_proj_name, "w13_weight", up, (inner, hidden)),
            (module.ckpt_down_proj_name, "w2_weight", 0, (hidden, inner)),
        ):
            yield ServedExpert(
                name=f"{prefix}.{expert}.{leaf}.weight",
                module=module,
                attribute=attribute,
                expert=expert,
                start=start,
                shape=shape,
            )


def repack_experts(model: nn.Module) -> None:
    """Pack every layer's experts again after an update, where the kernel computes with packed ones.

    vLLM 0.32 packs them at the first load only (UnquantizedFusedMoEMethod._setup_kernel returns early when
    the kernel is there): after an update the CPU kernel would read plain weights as packed ones.
    """
    for module in model.modules():
        if is_mixture(module) and _packing(module) is not None:
            layer: Any = module
            layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)


def _packing(module: Any) -> str | None:
    """The instruction set that a layer's experts are packed for; None where they are as they were loaded."""
    experts = module.quant_method.moe_kernel.fused_experts
    return None if getattr(experts, "_use_zentorch", False) else getattr(experts, "isa", None)


@lru_cache
def _packed_order(shape: tuple[int, int], dtype: torch.dtype, isa: str) -> torch.Tensor:
    """For each place of a packed (R, K) matrix, the element that lies there: int64 (R * K,).

    The elements' numbers are packed digit by digit, base 256, since every dtype holds 0..255 exactly.

    Raises:
        WeightSyncError: what came out is not a permutation.
    """
    from vllm._custom_ops import cpu_prepack_moe_weight

    numbers = torch.arange(shape[0] * shape[1]).reshape(1, *shape)
    order = torch.zeros(numbers.numel(), dtype=torch.int64)
    for shift in range(0, numbers.numel().bit_length(), 8):
        digits = ((numbers >> shift) & 255).to(dtype)
        order += cpu_prepack_moe_weight(digits, isa).flatten().to(torch.int64) << shift
    if not torch.equal(order.sort().values, numbers.flatten()):
        raise WeightSyncError(f"the packing of experts for {isa} is not a permutation: it cannot be proven")
    return order
