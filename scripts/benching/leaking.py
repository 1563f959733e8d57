"""A drill for the gate: attention that shows one token too many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rl import layout
from rl.samples import TrainSample
from rl.trie import Trie, make_trie


@contextmanager
def leaking() -> Iterator[None]:
    """Within it each query of padded rows, and one branch of a trie, also sees a neighbour's last token.

    Of rows the neighbour is the row before in the same call, a sibling where siblings lie side by side; of a
    call with one row it is the call before. Of a trie it is the branch that lies before.
    """
    plain, last = functional.scaled_dot_product_attention, []

    def leaky(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        own = key[:, :, -1:], value[:, :, -1:]
        one_row = len(key) == 1 and last and last[0][0].shape == own[0].shape
        leaked = last[0] if one_row else tuple(tensor.roll(1, 0) for tensor in own)
        last[:] = [tuple(tensor.detach() for tensor in own)]
        rows, columns = query.shape[-2], key.shape[-2]
        if attn_mask is None:
            attn_mask = torch.ones(rows, columns, dtype=torch.bool)
            attn_mask = attn_mask.tril() if is_causal else attn_mask
        open_column = attn_mask.new_full((*attn_mask.shape[:-1], 1), attn_mask.dtype is torch.bool)
        mask = torch.cat([attn_mask, open_column], dim=-1)
        keys, values = torch.cat([key, leaked[0]], dim=-2), torch.cat([value, leaked[1]], dim=-2)
        return plain(query, keys, values, attn_mask=mask, dropout_p=dropout_p, **options)

    functional.scaled_dot_product_attention = leaky
    layout.make_trie = leaky_trie
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
        layout.make_trie = make_trie


def leaky_trie(samples: Sequence[TrainSample], *, shares: bool = True) -> Trie:
    """A trie whose last branch begins one token early, with the last token of the branch before it."""
    trie = make_trie(samples, shares=shares)
    *others, last = trie.segments
    return replace(trie, segments=(*others, replace(last, start=last.start - 1)))
