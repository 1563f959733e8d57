"""The padded layout: samples as rows of tensors, right-padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from rl.samples import TrainSample
from rl.trie import Trie, make_trie

TokenArrays = tuple[np.ndarray, ...]
"""One array (T,) a sample."""


def rows_of_like_length(samples: Sequence[TrainSample], num_rows: int) -> Iterator[list[int]]:
    """Indices of at most `num_rows` samples at a time, shortest first: one long row would pad all others."""
    order = sorted(range(len(samples)), key=lambda row: len(samples[row].token_ids))
    for start in range(0, len(order), num_rows):
        yield order[start : start + num_rows]


@dataclass(frozen=True, kw_only=True)
class PaddedLayout:
    """B samples as rows of T tokens, padded on the right; log-probs and advantages are 0 at loss_mask 0.

    Example, rows of 3 and 2 tokens, prompt length 1:
        attention_mask = [[1, 1, 1], [1, 1, 0]]
        loss_mask      = [[0, 1, 1], [0, 1, 0]]
        position_ids   = [[0, 1, 2], [0, 1, 2]]
    """

    token_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool
    position_ids: Tensor  # (B, T) int64
    loss_mask: Tensor  # (B, T) bool
    weight: Tensor  # (B,) float32, TrainSample.weight
    rollout_logprobs: Tensor  # (B, T) float32, NaN where the engine gave none
    old_logprobs: Tensor | None = None  # (B, T) float32
    ref_logprobs: Tensor | None = None  # (B, T) float32
    teacher_logprobs: Tensor | None = None  # (B, T) float32
    old_values: Tensor | None = None  # (B, T) float32
    advantages: Tensor | None = None  # (B, T) float32
    returns: Tensor | None = None  # (B, T) float32
    kept_ids: Tensor | None = None  # (B, T, K) int32, TrainSample.kept_ids, -1 where there is none
    routed_experts: Tensor | None = None  # (B, T, layers, top_k) int16, -1 where not known
    trie: Trie | None = None  # the same tokens as a model computes them; None: row by row, padded

    def to(self, device: torch.device | str) -> PaddedLayout:
        """The same layout on `device`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in parts.items() if x is not None})

    def unpad(self, values: Tensor) -> TokenArrays:
        """Row by row the first T_i entries of `values` (B, T), as float32 arrays: the inverse of padding."""
        lengths = self.attention_mask.sum(1).tolist()
        return tuple(row[:n] for row, n in zip(values.detach().float().cpu().numpy(), lengths, strict=True))


def pad(
    samples: Sequence[TrainSample], *, pad_id: int = 0, layout: str = "padded", **token_arrays: TokenArrays
) -> PaddedLayout:
    """The samples as a PaddedLayout, with those of TOKEN_ARRAYS that are given.

    `layout` says how a model computes them: "padded", row by row; "trie", without padding, what several
    share once; "packed", without padding, each by itself. Losses see the same rows in all three.

    Any `pad_id` in the vocabulary will do: a causal model's real tokens never see what stands to their right.

    Raises:
        ValueError: only some samples have kept_ids.
    """
    lengths = np.array([len(sample.token_ids) for sample in samples], np.int64)
    positions = np.tile(np.arange(lengths.max(initial=0)), (len(samples), 1))
    real = torch.from_numpy(positions < lengths[:, None])
    loss_mask = _padded([sample.loss_mask for sample in samples], real, False, torch.bool)
    floats = {"rollout_logprobs": [sample.rollout_logprobs for sample in samples], **token_arrays}
    return PaddedLayout(
        token_ids=_padded([sample.token_ids for sample in samples], real, pad_id, torch.int64),
        attention_mask=real,
        position_ids=torch.from_numpy(positions),
        loss_mask=loss_mask,
        weight=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        routed_experts=_padded_experts(samples, real),
        **{
            name: _padded(rows, real, 0.0, torch.float32).masked_fill(~loss_mask, 0.0)
            for name, rows in floats.items()
        },
        kept_ids=_padded_kept([sample.kept_ids for sample in samples], real),
        trie=None if layout == "padded" else make_trie(samples, shares=layout == "trie"),
    )


def _padded_experts(samples: Sequence[TrainSample], real: Tensor) -> Tensor | None:
    """What the samples know of their routing, -1 elsewhere; None where none knows any."""
    known = [(row, sample.routed_experts) for row, sample in enumerate(samples)]
    shapes = {experts.shape[1:] for _, experts in known if experts is not None}
    if not shapes:
        return None
    (shape,) = shapes  # of one model
    out = torch.full((*real.shape, *shape), -1, dtype=torch.int16)
    for row, experts in known:
        if experts is not None:
            out[row, : len(experts)] = torch.from_numpy(experts)
    return out


def _padded(rows: Sequence[np.ndarray], real: Tensor, fill: float, dtype: torch.dtype) -> Tensor:
    """Rows of different length as one tensor (B, T)."""
    out = torch.full(real.shape, fill, dtype=dtype)
    out[real] = torch.from_numpy(np.concatenate([np.zeros(0, bool), *rows])).to(dtype)
    return out


def _padded_kept(rows: Sequence[np.ndarray | None], real: Tensor) -> Tensor | None:
    """kept_ids (T, K) of different length and width as one tensor (B, T, K); None where no row has any."""
    given = [row for row in rows if row is not None]
    if not given:
        return None
    if len(given) != len(rows):
        raise ValueError(
            f"{len(given)} of {len(rows)} samples have kept_ids; expected all or none, sampled with the "
            "same filters"
        )
    width = max(row.shape[1] for row in given)
    wide = [np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=-1) for row in given]
    out = torch.full((*real.shape, width), -1, dtype=torch.int32)
    out[real] = torch.from_numpy(np.concatenate(wide)).to(torch.int32)
    return out


def unpadded(tensor: Tensor, rows: Sequence[int], samples: Sequence[TrainSample]) -> dict[int, np.ndarray]:
    """The rows (B, T) of a pass as arrays (T,) of the samples that they are of, by their places in `rows`."""
    arrays = zip(rows, tensor.cpu().numpy(), strict=True)
    return {row: array[: len(samples[row].token_ids)] for row, array in arrays}
