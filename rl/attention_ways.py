"""Attention in a trie on a GPU: three ways, and which of them a layout, a dtype and a device allow.

All compute the same. varlen takes no branches and only what FlashAttention takes, and is fastest; flex takes
branches and must be compiled; dense is the definition, any device has it, and it costs U x U.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._triton import has_triton_package

from rl.trie import Trie

Way = Literal["varlen", "flex", "dense"]

FLASH_CAPABILITY = (8, 0)
"""Ampere: FlashAttention 2, and bfloat16 in the hardware (pytorch flash_api.cpp, mha_varlen_fwd)."""

TRITON_CAPABILITY = (7, 0)
"""Volta: what inductor compiles for (torch 2.13 torch/_inductor/scheduler.py, GPUTooOldForTriton)."""

FLASH_HEAD_DIM = 256
FLASH_MULTIPLE = 8
FLEX_HEAD_DIM = 16
"""The narrowest product of matrices that triton has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a device and this build of torch have."""

    capability: tuple[int, int]  # CUDA compute capability, (0, 0) without a GPU
    has_flash: bool  # compiled into torch
    has_triton: bool


def chosen_way(*, has_branches: bool, dtype: torch.dtype, head_dim: int, offer: Offer) -> Way:
    """The fastest way that takes queries, keys and values of `dtype` and `head_dim` (elements a head)."""
    is_narrow = dtype in (torch.float16, torch.bfloat16)
    fits_flash = is_narrow and head_dim <= FLASH_HEAD_DIM and head_dim % FLASH_MULTIPLE == 0
    if not has_branches and fits_flash and offer.has_flash and offer.capability >= FLASH_CAPABILITY:
        return "varlen"
    # Inductor leaves bfloat16 on older GPUs uncompiled, and flex then builds more than the dense mask.
    needed = FLASH_CAPABILITY if dtype is torch.bfloat16 else TRITON_CAPABILITY
    fits_flex = (is_narrow or dtype is torch.float32) and head_dim >= FLEX_HEAD_DIM
    if fits_flex and offer.has_triton and offer.capability >= needed:
        return "flex"
    return "dense"


@cache
def offer_of(device: torch.device) -> Offer:
    """What `device` offers; asked once."""
    return Offer(
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        has_flash=torch.backends.cuda.is_flash_attention_available(),
        has_triton=has_triton_package(),
    )


def by_device(query: Tensor, key: Tensor, value: Tensor, trie: Trie, scale: float) -> Tensor:
    """The way that is chosen for these tensors. (1, heads, U, D) each, of one dtype; so is the result."""
    way = chosen_way(
        has_branches=trie.has_branches,
        dtype=query.dtype,
        head_dim=query.shape[-1],
        offer=offer_of(query.device),
    )
    return WAYS[way](query, key, value, trie, scale)


def varlen(query: Tensor, key: Tensor, value: Tensor, trie: Trie, scale: float) -> Tensor:
    """FlashAttention over the segments of a trie without branches, each a causal sequence of its own."""
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    out = varlen_attn(
        queries,
        keys,
        values,
        trie.boundaries,
        trie.boundaries,
        trie.longest,
        trie.longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)  # alone, since nothing else was asked for
    return out.transpose(0, 1)[None]


def flex(query: Tensor, key: Tensor, value: Tensor, trie: Trie, scale: float) -> Tensor:
    """FlexAttention with the trie's block mask."""
    grouped = query.shape[1] != key.shape[1]
    return _compiled_flex()(query, key, value, block_mask=trie.block_mask, scale=scale, enable_gqa=grouped)


def dense(query: Tensor, key: Tensor, value: Tensor, trie: Trie, scale: float) -> Tensor:
    """torch's attention with the mask as one matrix."""
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=trie.dense_mask, scale=scale, enable_gqa=grouped
    )


WAYS = {"varlen": varlen, "flex": flex, "dense": dense}


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)
