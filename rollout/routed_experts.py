"""What vLLM tells of a request's routing, checked: which experts each token of it was sent to."""

from __future__ import annotations

from typing import Any

import numpy as np


def experts_of(output: Any, num_rows: int) -> np.ndarray:
    """`CompletionOutput.routed_experts` of vllm 0.32 as int16 (num_rows, layers, top_k).

    Raises:
        ValueError: the engine was asked for another number of rows, or for any at all.
    """
    rows = output.routed_experts
    if rows is None or len(rows) != num_rows:
        raise ValueError(
            f"vLLM returned the experts of {0 if rows is None else len(rows)} tokens; expected {num_rows}: "
            "it needs enable_return_routed_experts and a mixture of experts"
        )
    return np.asarray(rows, np.int16)
