"""A reward as a user of verl has it: what scripts/bench.py scores with."""

from __future__ import annotations

import re
import time
from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> float:
    """1.0 where the last number is the answer: a regular expression and a comparison, as gsm8k's."""
    numbers = re.findall(r"-?\d+", solution_str)
    return float(bool(numbers) and numbers[-1] == ground_truth)


def slow_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> float:
    """The same after 50 ms of waiting, as for a service."""
    time.sleep(0.05)
    return compute_score(data_source, solution_str, ground_truth)


def sometimes_hangs(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> float:
    """The same; of a solution that says so it does not return."""
    while "hang" in solution_str:
        pass
    return compute_score(data_source, solution_str, ground_truth)
