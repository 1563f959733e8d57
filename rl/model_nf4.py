"""bitsandbytes: a frozen model whose linear layers are held in 4-bit NormalFloat (QLoRA, arXiv 2305.14314).

Each block of 64 weights is 64 codes of 4 bits and a scale; the scales are held in 8 bits themselves (double
quantisation, section 3 of the paper). The head, the token embedding and the norms stay as they are.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes  # pyright: ignore[reportMissingImports]  (an extra)
import torch
from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig

from rl.model import load_causal_lm


class FrozenLinear4bit(bitsandbytes.nn.Linear4bit):
    """x W^T + b with W made of its codes for this pass alone, in float32, and multiplied as nn.Linear would.

    bitsandbytes's own forward is not used. On a CPU with AVX512-BF16 it packs the codes anew in the first
    pass without gradients and computes in bfloat16 from then on, without a gradient; elsewhere it rounds the
    bias to the dtype of the input, for good. This one changes nothing that it reads, and what it multiplies
    with is to the bit what engines are sent.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of autocast where that is on, else of `x`."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(x.to(dtype), self.weight, bias)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """The layer's product. Autograd would keep a whole W for each layer until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, dequantized(weight).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ dequantized(ctx.weight).to(gradient.dtype), None, None


def load_nf4(path: str, *, device: str = "cpu") -> Any:
    """A model folder or hub id, its linear layers but the head in 4 bits, the rest in float32.

    Quantised on `device`, from float32.

    Raises:
        ValueError: as load_causal_lm.
    """
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = load_causal_lm(path, quantization_config=quantisation, device_map={"": device})
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.__class__ = FrozenLinear4bit
    return model


@torch.no_grad()
def dequantized(weight: Any) -> Tensor:
    """What the codes of a 4-bit weight stand for: (out, in), float32, a new tensor."""
    return dequantize_4bit(weight.data, weight.quant_state).float()
