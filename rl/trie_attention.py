"""Attention in a trie: a token sees its ancestors and itself. One seam, with a way for each device.

transformers' models look their attention up by name and hand on what their forward was given, so no model is
forked: `drive` gives a model ours, and a `trie=` in its forward's arguments reaches it in every layer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rl.attention_ways import by_device
from rl.samples import TrainSample
from rl.trie import Segment, Trie, make_trie, trie_options

NAME = "whetstone_trie"
PROBE_TOLERANCE = 1e-3
"""Of the states of a trie against those of its samples, one by one, relative to their largest: float32 is
far below, a model whose attention is not driven far above."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trie: Trie | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, U, D) each to (1, U, heads, D). Without a trie, SDPA."""
    if trie is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    narrow = (
        torch.get_autocast_dtype(query.device.type)
        if torch.is_autocast_enabled(query.device.type)
        else value.dtype
    )
    query, key, value = (x.to(narrow) for x in (query, key, value))
    scale = scaling or query.shape[-1] ** -0.5
    compute = segmented if query.device.type == "cpu" else by_device
    out = compute(query, key, value, trie, scale)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)


class _Segments(torch.autograd.Function):
    """The CPU's way: flash attention segment by segment, each once as keys of itself and once of all behind.

    Parts of one row are put together by their log Σ exp (arXiv 2205.14135, section 3.1). The backward pass
    of each part takes the row's final output and log Σ exp, with which its own share follows. No mask, no
    copy of a prefix.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], scale: float
    ) -> Tensor:
        out = torch.empty_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
        log_sum = torch.empty(query.shape[:3], dtype=out.dtype)
        for segment in segments:
            for rows, is_causal in _parts(segment):
                part, part_sum = _flash(
                    query[:, :, rows],
                    *_keys(segment, key, value),
                    0.0,
                    is_causal,
                    scale=scale,
                )
                if segment.is_root:
                    out[:, :, rows], log_sum[:, :, rows] = part, part_sum
                else:
                    _add_part(out[:, :, rows], log_sum[:, :, rows], part, part_sum)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, out, log_sum = ctx.saved_tensors
        wide = torch.promote_types(query.dtype, torch.float32)
        grads = [torch.zeros_like(x, dtype=wide) for x in (query, key, value)]
        for segment in ctx.segments:
            own = slice(segment.start, segment.end)
            for rows, is_causal in _parts(segment):
                parts = _flash_backward(
                    grad[:, :, rows],
                    query[:, :, rows],
                    *_keys(segment, key, value),
                    out[:, :, rows],
                    log_sum[:, :, rows],
                    0.0,
                    is_causal,
                    scale=ctx.scale,
                )
                for total, part, place in zip(grads, parts, (rows, own, own), strict=True):
                    total[:, :, place] += part
        narrow = (total.to(x.dtype) for total, x in zip(grads, (query, key, value), strict=True))
        return *narrow, None, None


def segmented(query: Tensor, key: Tensor, value: Tensor, trie: Trie, scale: float) -> Tensor:
    """The CPU's way. (1, heads, U, D) each, of one dtype; so is the result."""
    return _Segments.apply(query, key, value, trie.segments, scale)  # type: ignore[return-value]


def _parts(segment: Segment) -> list[tuple[slice, bool]]:
    """Which rows see a segment's keys: its own, causally, and all behind it."""
    own = (slice(segment.start, segment.end), True)
    behind = (slice(segment.end, segment.reach), False)
    return [own, behind] if segment.reach > segment.end else [own]


def _keys(segment: Segment, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    own = slice(segment.start, segment.end)
    return key[:, :, own], value[:, :, own]


def _add_part(out: Tensor, log_sum: Tensor, part: Tensor, part_sum: Tensor) -> None:
    """Put what more keys give to rows that have some already, in place."""
    total = torch.logaddexp(log_sum, part_sum)
    out.mul_((log_sum - total).exp()[..., None]).add_(part * (part_sum - total).exp()[..., None])
    log_sum.copy_(total)


def drivable_layout(layout: str, models: Sequence[Any]) -> str:
    """`layout` (rl/layout.py, pad); "padded" where one of `models` cannot be driven, which is said once."""
    if layout == "padded":
        return layout
    problem = next(filter(None, map(drive, models)), "")
    if not problem:
        return layout
    logging.getLogger(__name__).warning("batches are padded, shared prefixes computed again: %s", problem)
    return "padded"


def drive(model: Any) -> str:
    """Give `model` attention that computes tries; "" or why it cannot be driven, and then it is as it was.

    Believed when seen: the states of a small trie must be those of its samples, one by one.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (getattr(config, "sliding_window", None) and not kinds):
        return f"{type(model).__name__} has layers that are no full attention"
    before = config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        gap = _probe(model)
    except Exception as error:  # whatever a model does that is not driven by the interface
        problem = f"{type(error).__name__}: {error}"
    else:
        if gap <= PROBE_TOLERANCE:
            return ""
        problem = f"the states of a trie are {gap:.1e} off those of its samples"
    model.set_attn_implementation(before)
    return f"{type(model).__name__} cannot be driven through transformers' attention interface ({problem})"


@torch.no_grad()
def _probe(model: Any) -> float:
    """How far the states of a trie of three samples are off those of each by itself, relative."""
    backbone = model.get_decoder()
    device = next(model.parameters()).device
    ids = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, (3, 12))
    ids[1:, :5], ids[2, :8] = ids[0, :5], ids[1, :8]  # a branch, and one behind it
    samples = [_probe_sample(row, str(number)) for number, row in enumerate(ids)]
    trie = make_trie(samples).to(device)
    own = backbone(**trie_options(trie), use_cache=False).last_hidden_state[0, trie.predictors]
    rows = torch.from_numpy(ids).to(device)
    alone = [backbone(input_ids=row[None], use_cache=False).last_hidden_state[0, :-1] for row in rows]
    wanted = torch.cat(alone)
    return float((own - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def _probe_sample(ids: np.ndarray, name: str) -> TrainSample:
    size = len(ids)
    return TrainSample(
        token_ids=ids,
        loss_mask=np.arange(size) > 0,
        rollout_logprobs=np.zeros(size, np.float32),
        versions=np.zeros(size, np.int64),
        turn_ids=np.zeros(size, np.int64),
        trajectory_id=name,
        group_id=0,
        env="",
        weight=1.0,
    )
