"""The golden files of kind filter: which groups, and which members of a group, are trained on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from rl.advantages import group_fractions
from rl.filters import resample_on_correct, roc_penalty
from rl.numerics import group_statistics
from tests.rl.golden_config import Case
from tests.rl.golden_given import Given, Outputs, Tolerance, compare


def dynamic_sampling(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Groups, and rows, that have a difference to learn from."""
    del dtype
    rewards, group_ids = (np.array(case["inputs"][name]) for name in ("rewards", "group_ids"))
    informative = group_statistics(rewards, group_ids).informative
    uniform, singleton = group_fractions(rewards, group_ids)
    outputs: Outputs = {
        "kept_groups": (np.unique(group_ids[informative]),),
        "dropped_groups": (np.unique(group_ids[~informative]),),
        **dict.fromkeys(("kept_rows", "kept", "keep_mask"), (np.flatnonzero(informative), informative)),
        **dict.fromkeys(("zero_std_group_frac", "zero_std_frac"), (uniform,)),
        **dict.fromkeys(("singleton_group_frac", "singleton_frac"), (singleton,)),
    }
    compare(outputs, case["expected"], tolerance)


def roc(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    given = Given(case["inputs"], case["config"], dtype)
    rewards = given.array("rewards", "scores", "reward")
    groups = np.array(given.get("group_ids", "groups", "uid", default=[0] * len(rewards)))
    penalty = given.get("penalties", "penalty", "penalty_weights", "weights", default=None)
    if penalty is None:
        calls = given.array("num_calls", "tool_calls", "calls", "num_tool_calls", "total_calls", "n_calls")
        names = ("failed_calls", "num_failed_calls", "tool_errors", "errors", "error_calls", "num_errors")
        failed = given.array(*names, "n_errors", "n_failed", "failed")
        formats = ("format_penalty", "format_penalties", "p_format", "format_errors", "format_error")
        extra = np.broadcast_to(given.array(*formats, default=0.0), calls.shape)
        penalty = [
            roc_penalty(int(f), int(c), float(e)) for f, c, e in zip(failed, calls, extra, strict=True)
        ]
    knobs = {
        "num_kept": int(given.get("down_sample_to_n", "keep", "num_kept", "G", "n", "group_size", "k")),
        "min_zero": int(given.get("min_zero", "min_zero_reward_trace_num", default=2)),
        "min_nonzero": int(given.get("min_nonzero", "min_non_zero_reward_trace_num", default=2)),
    }
    kept = np.zeros(len(rewards), bool)
    for group in np.unique(groups):
        members = groups == group
        kept[members] = resample_on_correct(rewards[members], np.array(penalty)[members], **knobs)
    outputs, expected = dict[str, tuple[Any, ...]](), dict[str, Any]()
    for name, value in case["expected"].items():
        left = ~kept if re.search("drop|reject", name) else kept
        if "penalt" in name:
            outputs[name] = (np.array(penalty), np.array(penalty)[kept])
        elif re.search("drop|reject|keep|kept|select|index|indices|retain|mask", name):
            outputs[name] = (left, np.flatnonzero(left), left.sum(), left.mean())
        is_mask = np.shape(value) == rewards.shape and {*map(float, value)} <= {0.0, 1.0}
        is_listed = np.ndim(value) == 1 and "penalt" not in name and not is_mask
        expected[name] = sorted(value) if is_listed else value  # in which order they are kept says nothing
    compare(outputs, expected, tolerance)


def filtered(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """GRPO-RoC where the file or its settings say so, else the filter of groups without a difference."""
    names = {*case["inputs"], *case["config"], *case["expected"]}
    is_roc = "roc" in case["id"] or any("penalt" in name or "call" in name for name in names)
    (roc if is_roc else dynamic_sampling)(case, dtype, tolerance)


CHECKS = {"filter": filtered}
"""What checks a file, by its `kind`."""
