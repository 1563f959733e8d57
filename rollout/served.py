"""What a vLLM model serves, by Hugging Face tensor name.

vLLM fuses projections (q, k, v -> qkv_proj), pads the vocabulary and, on the CPU, packs matrices and frees
the originals. Here the fused names are taken apart again and each layer is read through what it computes
with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rollout.manifest import WeightSyncError
from rollout.served_experts import ServedExpert, is_mixture, served_experts
from rollout.weight_sketch import Sketch, probe, sketch_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTensor:
    """Rows [start, end) of what `module` serves under `attribute` are the Hugging Face tensor `name`.

    `packed`: the layer computes with `cpu_linear`, its own packed copy, and not with the parameter.
    """

    name: str
    module: Any  # a vLLM layer
    attribute: str
    start: int
    end: int
    shape: tuple[int, ...]
    packed: bool

    def sketch(self, seed: int) -> Sketch:
        """Of what the layer computes with (seed: rollout.weight_sketch.probe)."""
        weight = getattr(self.module, self.attribute)
        if not self.packed:
            return sketch_tensor(weight[self.start : self.end], seed)
        width = self.shape[1]
        columns, signs = probe(width, seed)
        dtype = weight.dtype
        probes = torch.cat([torch.eye(width, dtype=dtype)[columns], signs[None].to(dtype)])
        out = self.module.cpu_linear(probes, weight, None)[:, self.start : self.end].float()
        return Sketch(columns=out[:-1].T.contiguous().numpy(), product=out[-1].numpy())


def served_tensors(model: nn.Module) -> Iterator[ServedTensor | ServedExpert]:
    """Every tensor that a text model on one rank is made of; a tied head is listed as `lm_head.weight`.

    Raises:
        WeightSyncError: a parameter that this reader does not understand (it could not be proven).
    """
    fused = getattr(model, "packed_modules_mapping", {})
    for path, module in model.named_modules():
        if is_mixture(module):
            yield from served_experts(path, module)
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            # Where an engine serves adapters, their layer stands around the one with the weight.
            prefix, dot, leaf = path.removesuffix(".base_layer").rpartition(".")
            rows, *rest = _full_shape(module, attribute, parameter)
            parts = {leaf: rows}
            if leaf in fused:
                parts = dict(zip(fused[leaf], _part_rows(path, module, len(fused[leaf])), strict=True))
            # An embedding is packed too, but a lookup reads the parameter; only the head multiplies.
            is_lookup = hasattr(module, "org_vocab_size") and leaf != "lm_head"
            start = 0
            for part, part_rows in parts.items():
                yield ServedTensor(
                    name=f"{prefix}{dot}{part}.{attribute}",
                    module=module,
                    attribute=attribute,
                    start=start,
                    end=start + part_rows,
                    shape=(part_rows, *rest),
                    packed=attribute == "weight" and hasattr(module, "cpu_linear") and not is_lookup,
                )
                start += part_rows


def _part_rows(path: str, module: Any, num_parts: int) -> list[int]:
    """How many output rows each part of a fused layer has."""
    if hasattr(module, "num_kv_heads") and hasattr(module, "head_size"):
        kv_rows = module.num_kv_heads * module.head_size
        return [module.num_heads * module.head_size, kv_rows, kv_rows]
    sizes = list(getattr(module, "output_sizes", []))
    if len(sizes) != num_parts:
        raise WeightSyncError(
            f"cannot take the fused layer {path} ({type(module).__name__}) apart into {num_parts}"
        )
    return sizes


def _full_shape(module: Any, attribute: str, parameter: torch.Tensor) -> tuple[int, ...]:
    """The tensor's shape before packing and without vocabulary padding."""
    if attribute == "weight" and hasattr(module, "org_vocab_size"):
        return (module.org_vocab_size, module.embedding_dim)
    if attribute == "weight" and hasattr(module, "output_size_per_partition"):
        return (module.output_size_per_partition, module.input_size_per_partition)
    if attribute == "weight" and hasattr(module, "output_size"):  # a layer that is whole on every rank
        return (module.output_size, module.input_size)
    return tuple(parameter.shape)


def _is_tied(model: Any) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))


def expected_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor a sync must bring. A tied head is not sent: it is re-tied instead."""
    return {
        tensor.name: tensor.shape
        for tensor in served_tensors(model)
        if not (_is_tied(model) and tensor.name == "lm_head.weight")
    }


def retie_head(model: nn.Module) -> None:
    """Give a tied head the embedding's new weight, and pack it again.

    On the CPU the head is a module with a packed copy of its own: after a load it would go on serving its
    initial values, with no more than a warning in the log.
    """
    if not _is_tied(model):
        return
    head: Any
    head, embedding = model.get_submodule("lm_head"), model.get_submodule("model.embed_tokens")
    if head is embedding:
        return
    head.weight = embedding.weight
    head.quant_method.process_weights_after_loading(head)


@torch.no_grad()
def served_sketches(model: nn.Module, seed: int) -> dict[str, Sketch]:
    """Sketch every served tensor through the layer that serves it (seed: rollout.weight_sketch.probe)."""
    return {tensor.name: tensor.sketch(seed) for tensor in served_tensors(model)}
