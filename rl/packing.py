"""Which samples go through the model together: passes of so many rows, or of so many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rl.layout import rows_of_like_length
from rl.samples import TrainSample


def passes(
    samples: Sequence[TrainSample], *, num_rows: int, num_tokens: int = 0, layout: str = "trie"
) -> list[list[int]]:
    """Indices of `samples`, pass by pass: each in exactly one.

    At most `num_tokens` tokens of a pass's trie, if that is given (first fit, longest first, beside siblings
    where it fits); otherwise at most `num_rows` samples: of like length where rows are padded, else in
    order, so that a group stays together.

    Raises:
        ValueError: a sample is longer than num_tokens.
    """
    if num_tokens:
        return _by_tokens(samples, num_tokens, shares=layout == "trie")
    if layout == "padded":
        return list(rows_of_like_length(samples, num_rows))
    return [list(range(len(samples)))[start : start + num_rows] for start in range(0, len(samples), num_rows)]


@dataclass(slots=True)
class _Pass:
    rows: list[int] = field(default_factory=list)
    num_tokens: int = 0
    groups: dict[int, list[int]] = field(default_factory=dict)

    def cost(self, row: int, samples: Sequence[TrainSample], shares: bool) -> int:
        """Tokens that a sample adds: its own less what it shares with a sibling that is here."""
        ids = samples[row].token_ids
        siblings = self.groups.get(samples[row].group_id, []) if shares else []
        return len(ids) - max((_num_shared(ids, samples[other].token_ids) for other in siblings), default=0)

    def add(self, row: int, cost: int, group: int) -> None:
        self.rows.append(row)
        self.num_tokens += cost
        self.groups.setdefault(group, []).append(row)


def _num_shared(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _by_tokens(samples: Sequence[TrainSample], budget: int, *, shares: bool) -> list[list[int]]:
    longest = max(samples, key=lambda sample: len(sample.token_ids), default=None)
    if longest is not None and len(longest.token_ids) > budget:
        raise ValueError(
            f"micro_batch_tokens = {budget}, and {longest.trajectory_id} has "
            f"{len(longest.token_ids)} tokens; expected at least as many as the longest sample has"
        )
    found: list[_Pass] = []
    for row in _longest_first(samples):
        costs = [(one.cost(row, samples, shares), place) for place, one in enumerate(found)]
        fitting = [(cost, place) for cost, place in costs if found[place].num_tokens + cost <= budget]
        if not fitting:
            found.append(_Pass())
            fitting = [(len(samples[row].token_ids), len(found) - 1)]
        cost, place = min(fitting)  # beside siblings it costs least; among equals the first
        found[place].add(row, cost, samples[row].group_id)
    return [sorted(one.rows) for one in found]


def _longest_first(samples: Sequence[TrainSample]) -> list[int]:
    """Groups by their tokens, most first, and in each the samples by theirs: siblings come one by one."""
    sizes: dict[int, int] = {}
    for sample in samples:
        sizes[sample.group_id] = sizes.get(sample.group_id, 0) + len(sample.token_ids)
    return sorted(
        range(len(samples)),
        key=lambda row: (
            -sizes[samples[row].group_id],
            samples[row].group_id,
            -len(samples[row].token_ids),
            row,
        ),
    )
