"""The samples of a batch as a trie: a prefix that several of them share is laid out, and computed, once.

Tokens lie in depth-first order, so what follows a token lies in one run behind it: token k is seen by token q
exactly where k <= q < reach[k]. A position is a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from rl.samples import TrainSample


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens without a branch, [start, end) of the layout; its descendants are [end, reach)."""

    start: int
    end: int
    reach: int
    is_root: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie:
    """U tokens of B samples, N of which are sampled ones.

    Example, two samples 5 6 7 8 and 5 6 9 whose last two and one tokens are sampled:
        token_ids    = [[5, 6, 7, 8, 9]]
        position_ids = [[0, 1, 2, 3, 2]]
        reach        = [5, 5, 4, 4, 5]
        predictors   = [1, 2, 1]          the states that predict 7, 8 and 9
        segments     = [0, 2), [2, 4), [4, 5)
    """

    token_ids: Tensor  # (1, U) int64
    position_ids: Tensor  # (1, U) int64
    reach: Tensor  # (U,) int64, the first place behind what follows a token
    predictors: Tensor  # (N,) int64, where the state lies that predicts a sampled token, row by row
    counts: Tensor  # (1, U) float32, how many samples go through a token
    segments: tuple[Segment, ...]  # in the layout's order: a parent stands before its children
    routed_experts: Tensor | None = None  # (1, U, layers, top_k) int16, TrainSample.routed_experts

    @property
    def num_tokens(self) -> int:
        """U: what a model computes."""
        return self.token_ids.shape[1]

    @cached_property
    def block_mask(self) -> BlockMask:
        """Which blocks of tokens see which, for FlexAttention: made once for all layers."""
        reach = self.reach

        def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (q < reach[k])

        return create_block_mask(sees, None, None, self.num_tokens, self.num_tokens, device=str(reach.device))

    @cached_property
    def dense_mask(self) -> Tensor:
        """The same as one matrix (U, U) bool, true where a row sees a column: the obvious version."""
        place = torch.arange(self.num_tokens, device=self.reach.device)
        return (place[None] <= place[:, None]) & (place[:, None] < self.reach[None])

    @cached_property
    def has_branches(self) -> bool:
        """Whether anything is shared: without, every segment is a sequence of its own."""
        return not all(segment.is_root for segment in self.segments)

    @cached_property
    def boundaries(self) -> Tensor:
        """Where the segments begin, and the end: (segments + 1,) int32, for FlashAttention."""
        starts = [segment.start for segment in self.segments]
        return torch.tensor([*starts, self.num_tokens], dtype=torch.int32, device=self.reach.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(segment.end - segment.start for segment in self.segments)

    def to(self, device: torch.device | str) -> Trie:
        """The same trie with its tensors on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: x.to(device) for name, x in tensors.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def make_trie(samples: Sequence[TrainSample], *, shares: bool = True) -> Trie:
    """The trie of `samples`, in the order of their tokens; without `shares` each is a path of its own.

    Tokens are the same where all before them are, and where the engine sent them to the same experts.
    """
    places, num_tokens = _places(samples, shares)
    token_ids, position_ids, reach, counts = (np.zeros(num_tokens, np.int64) for _ in range(4))
    for sample, own in zip(samples, places, strict=True):
        token_ids[own] = sample.token_ids
        position_ids[own] = np.arange(len(own))
        reach[own] = np.maximum(reach[own], own[-1:] + 1)
        counts[own] += 1
    # No sampled token is the first: something stands before each (TrainSample refuses others).
    predictors = [own[np.flatnonzero(s.loss_mask) - 1] for s, own in zip(samples, places, strict=True)]
    return Trie(
        token_ids=torch.from_numpy(token_ids)[None],
        position_ids=torch.from_numpy(position_ids)[None],
        reach=torch.from_numpy(reach),
        predictors=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *predictors])),
        counts=torch.from_numpy(counts.astype(np.float32))[None],
        segments=_segments(_parents(places, num_tokens), reach),
        routed_experts=_experts(samples, places, num_tokens),
    )


def num_trie_tokens(samples: Sequence[TrainSample]) -> int:
    """Tokens of the samples' trie: what computing them costs."""
    return _places(samples, True)[1]


def _places(samples: Sequence[TrainSample], shares: bool) -> tuple[list[np.ndarray], int]:
    """Where each sample's tokens lie, int64 (T,), and how many places there are."""
    columns = [_column(sample) for sample in samples]
    keys = [column.tobytes() for column in columns]
    order = sorted(range(len(samples)), key=keys.__getitem__) if shares else range(len(samples))
    places = [np.zeros(0, np.int64)] * len(samples)
    num_tokens, before = 0, -1
    for row in order:
        shared = _num_shared(columns[before], columns[row]) if shares and before >= 0 else 0
        fresh = np.arange(num_tokens, num_tokens + len(columns[row]) - shared)
        places[row] = np.concatenate([places[before][:shared], fresh])
        num_tokens += len(fresh)
        before = row
    return places, num_tokens


def _column(sample: TrainSample) -> np.ndarray:
    """What makes a token the same as another one, as bytes (T, width) whose order is that of the ids."""
    parts = [sample.token_ids.astype(">i8").view(np.uint8).reshape(-1, 8)]
    if sample.routed_experts is not None:
        parts.append(np.ascontiguousarray(sample.routed_experts).view(np.uint8).reshape(len(parts[0]), -1))
    return np.concatenate(parts, axis=1)


def _num_shared(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that two columns begin with alike."""
    if a.shape[1] != b.shape[1]:
        return 0
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).any(1)
    return int(differs.argmax()) if differs.any() else length


def _parents(places: Sequence[np.ndarray], num_tokens: int) -> np.ndarray:
    """The token before each, -1 before a first one: int64 (U,)."""
    parents = np.full(num_tokens, -1, np.int64)
    for own in places:
        parents[own[1:]] = own[:-1]
    return parents


def _segments(parents: np.ndarray, reach: np.ndarray) -> tuple[Segment, ...]:
    """Cut where a token does not follow the one before it in the layout, and behind each branch."""
    num_children = np.bincount(parents[parents >= 0], minlength=len(parents))
    follows = (parents == np.arange(-1, len(parents) - 1)) & (parents >= 0)
    starts = np.flatnonzero(~(follows & (num_children[parents] == 1)))
    ends = [*starts[1:].tolist(), len(parents)]
    return tuple(
        Segment(start, end, int(reach[end - 1]), bool(parents[start] < 0))
        for start, end in zip(starts.tolist(), ends, strict=True)
    )


def _experts(samples: Sequence[TrainSample], places: Sequence[np.ndarray], num_tokens: int) -> Tensor | None:
    """What the samples know of their routing, by place, -1 elsewhere; None where none knows any."""
    known = [(s.routed_experts, own) for s, own in zip(samples, places, strict=True)]
    shapes = {experts.shape[1:] for experts, _ in known if experts is not None}
    if not shapes:
        return None
    (shape,) = shapes  # of one model
    out = np.full((num_tokens, *shape), -1, np.int16)
    for experts, own in known:
        if experts is not None:
            out[own] = experts
    return torch.from_numpy(out)[None]


def trie_options(trie: Trie) -> dict[str, Any]:
    """The arguments with which a model of transformers computes a trie (rl/trie_attention.py)."""
    return {"input_ids": trie.token_ids, "position_ids": trie.position_ids, "trie": trie}
