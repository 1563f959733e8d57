"""Which tasks may be trained on: three disjoint spaces of task seeds."""

from __future__ import annotations

from enum import StrEnum
from hashlib import blake2b

_SPLIT_SHIFT = 61  # bits 61 and 62 name the split, the 61 bits below them the task


class Split(StrEnum):
    """What a task is for. Held-out tasks are for evaluation only."""

    TRAIN = "train"
    WARM_START = "warm_start"
    HELD_OUT = "held_out"


# Their order is part of every recorded seed. Small hand-written seeds (0, 1, 2...) fall into the first.
_SPLITS = (Split.TRAIN, Split.WARM_START, Split.HELD_OUT)


def task_seed(split: Split, run_seed: int, index: int) -> int:
    """The seed of task `index` of a run: pure, in [0, 2**63), never equal between two splits.

    The low 61 bits are BLAKE2b of (run_seed, index), so neighbouring runs and indices share nothing.
    """
    digest = blake2b(f"{run_seed}/{index}".encode(), digest_size=8).digest()
    code = int.from_bytes(digest, "big") & ((1 << _SPLIT_SHIFT) - 1)
    return _SPLITS.index(split) << _SPLIT_SHIFT | code


def split_of(seed: int) -> Split:
    """The split that `seed` belongs to."""
    code = seed >> _SPLIT_SHIFT
    if not 0 <= code < len(_SPLITS):
        limit = len(_SPLITS) << _SPLIT_SHIFT
        raise ValueError(
            f"task seed {seed} is in no split: expected 0 <= seed < {limit}, as from task_seed()"
        )
    return _SPLITS[code]


NUM_CONTENT_SHARES = 5  # one share of all contents is held out, four are trained on


def is_held_out(content: str) -> bool:
    """Whether tasks of this content are for evaluation only, whatever their seed.

    Two seeds may draw the same content by chance. Where every split draws from its own share of the contents,
    none is both trained on and held out.
    """
    digest = blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % NUM_CONTENT_SHARES == 0
