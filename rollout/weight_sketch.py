"""A sketch of a weight matrix: a few of its columns exactly, and its product with one random sign vector.

Both sides compute it from what they hold: the learner from its parameters, the engine through the very packed
kernel that serves. The columns show a stale or foreign tensor bit for bit; the product covers every element,
so a tensor that differs anywhere differs here. It costs NUM_COLUMNS + 1 rows of matrix multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from rollout.manifest import WeightSyncError

NUM_COLUMNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """Of one (R, K) tensor (a vector counts as (R, 1)), all float32.

    `columns` (R, <=4): columns as they are; `product` (R,): W @ x with x in {-1, +1}^K;
    `row_l1` (R,): sum of |W| along K, the scale of the product's rounding (None on the engine's side).
    """

    columns: np.ndarray
    product: np.ndarray
    row_l1: np.ndarray | None = None

    @classmethod
    def from_bytes(cls, entry: Mapping[str, Any]) -> Self:
        """What an engine's worker sends (rollout/weight_transfer.py): arrays as bytes, `rows` is R."""
        return cls(
            columns=np.frombuffer(entry["columns"], np.float32).reshape(entry["rows"], -1),
            product=np.frombuffer(entry["product"], np.float32),
        )


def probe(width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The probe of a (*, width) matrix: column indices (<=4,) int64 and signs (width,) float32."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + width)
    columns = torch.randperm(width, generator=generator)[:NUM_COLUMNS]
    signs = torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1
    return columns, signs


def sketch_tensor(weight: torch.Tensor, seed: int) -> Sketch:
    """Sketch a tensor that can be read directly. float32 arithmetic whatever its dtype."""
    matrix = weight.detach().reshape(weight.shape[0], -1).float()
    columns, signs = probe(matrix.shape[1], seed)
    return Sketch(
        columns=matrix[:, columns.to(matrix.device)].cpu().numpy(),
        product=(matrix @ signs.to(matrix.device)).cpu().numpy(),
        row_l1=matrix.abs().sum(dim=1).cpu().numpy(),
    )


def compare_sketches(
    served: Mapping[str, Sketch], expected: Mapping[str, Sketch], *, dtype: str, who: str
) -> None:
    """Raise unless what is served is what the learner holds.

    Args:
        served: the engine's sketch of every tensor, read through the layers that serve.
        expected: the learner's sketch of the same tensors, cast to the engine's `dtype`.
        dtype: the engine's dtype; it sets the rounding that the product is allowed.
        who: the engine's name, for the message.

    Raises:
        WeightSyncError: naming every tensor that differs, the number of differing rows and the first of them.
    """
    unserved = sorted(set(expected) - set(served))
    problems = [f"{name} is not served" for name in unserved]
    # One rounding of the result to the engine's dtype, and float32 accumulation in another order.
    relative = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
    for name, want in expected.items():
        if name in unserved:
            continue
        got = served[name]
        assert want.row_l1 is not None
        tolerance = relative * np.abs(want.product) + 2e-6 * want.row_l1
        differs = (got.columns != want.columns).any(axis=1) | ~(
            np.abs(got.product - want.product) <= tolerance
        )
        if differs.any():
            rows = np.flatnonzero(differs)
            problems.append(
                f"{name} differs in {len(rows)} of {len(differs)} rows, the first is row {rows[0]}"
            )
    if problems:
        raise WeightSyncError(f"{who} does not serve the learner's weights: " + "; ".join(problems))
