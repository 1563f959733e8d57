"""How the weights are held that an adapter leaves as they are: in float32, or in 4 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rl.lora import linear_layers, told
from rl.lora_settings import LoraSpec, missing_bitsandbytes
from rl.model import has_router, load_causal_lm, meta_model

if TYPE_CHECKING:
    from rl.config import Config

BLOCK = 64
"""Weights of a row that share a scale in 4 bits (arXiv 2305.14314, section 4)."""


def load_base(path: str, lora: LoraSpec | None, *, device: str = "cpu") -> Any:
    """The model of `path` as `lora` wants it held: float32, or with its linear layers in 4 bits.

    Raises:
        ValueError: it cannot be read, or not be quantised, or bitsandbytes is missing.
    """
    if lora is None or lora.base == "full":
        return load_causal_lm(path)
    if problems := [*missing_bitsandbytes(), *nf4_problems(meta_model(path), path)]:
        raise ValueError("\n".join(problems))
    # bitsandbytes is an extra, and whoever holds a model whole never needs it.
    from rl.model_nf4 import load_nf4

    return load_nf4(path, device=device)


def base_problems(config: Config) -> Iterator[str]:
    """Why the model of a resolved `config` cannot be held as its lora_base says; only shapes are read."""
    if config.trains_adapter and config.lora_base == "nf4":
        yield from nf4_problems(meta_model(config.model), config.model)


def nf4_problems(model: Any, name: str) -> Iterator[str]:
    """Why the layers of `model` (meta will do), called `name`, cannot be held in 4 bits."""
    layers = linear_layers(model)
    if has_router(model):
        yield (
            f"lora_base = 'nf4': model {name} is a mixture of experts, most of whose weights lie in no "
            "linear layer and would stay as they are; use lora_base full"
        )
    elif not layers:
        yield f"lora_base = 'nf4': model {name} has no linear layer besides its head; use lora_base full"
    odd = [f"{path} ({layer.in_features})" for path, layer in layers.items() if layer.in_features % BLOCK]
    if odd:
        yield (
            f"lora_base = 'nf4': rows of model {name} are no whole number of blocks of {BLOCK} weights: "
            f"{told(odd)}; use lora_base full"
        )


def num_quantized(model: Any) -> int:
    """Weights of `model` (meta will do) that lora_base nf4 holds in 4 bits."""
    return sum(layer.in_features * layer.out_features for layer in linear_layers(model).values())
