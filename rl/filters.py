"""Which members of an oversampled group are kept: resampling on correct (GRPO-RoC, arXiv 2508.20722)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.episode import Episode
from envs.messages import StopReason


def roc_penalty(num_failed_calls: int, num_calls: int, format_penalty: float = 0.0) -> float:
    """p_err + p_format: the share of calls that failed (0.5 without a call), and the format's penalty."""
    return (num_failed_calls / num_calls if num_calls else 0.5) + format_penalty


def episode_penalty(episode: Episode) -> float:
    """`roc_penalty` of an episode. An episode that ended without an answer has the format penalty 1."""
    tool_results = [entry for entry in episode.transcript if entry.role == "tool"]
    num_failed = sum(entry.is_error for entry in tool_results)
    answered = episode.stop_reason is StopReason.ANSWERED
    return roc_penalty(num_failed, len(tool_results), 0.0 if answered else 1.0)


def resample_on_correct(
    rewards: Sequence[float] | np.ndarray,
    penalties: Sequence[float] | np.ndarray,
    *,
    num_kept: int,
    min_zero: int = 2,
    min_nonzero: int = 2,
) -> np.ndarray:
    """Which of one group's members are kept: bool (G,).

    Members with a reward above 0 and the others keep their proportion, but at least `min_nonzero` and
    `min_zero` of them where there are as many. Of the positives those with the lowest penalty are kept, equal
    ones in the order in which they were sampled; of the others the first in that order. This is the
    deterministic form of microsoft/rStar's code, where the paper draws positives by inverse penalty: data
    stay a pure function of (config, seed, step). As in that code a group of fewer than `num_kept` is dropped
    whole; `resample_groups` takes the kept share of the members that are there.
    Halves are rounded to even on the side of the others, and the positives get the rest: 7 and 7 of which 7
    are kept give 4 others and 3 positives, where that code rounds both sides up to 4 and stops on its assert.

    Raises:
        ValueError: minima that add up to more than num_kept.
    """
    if min_zero + min_nonzero > num_kept:
        raise ValueError(
            f"min_zero + min_nonzero = {min_zero} + {min_nonzero} is above the {num_kept} members to keep; "
            "raise the group's size or lower the minima"
        )
    rewards, penalties = np.asarray(rewards, np.float64), np.asarray(penalties, np.float64)
    size = len(rewards)
    if size <= num_kept:
        return np.full(size, size == num_kept)
    order = np.argsort(penalties, kind="stable")
    zero, nonzero = np.flatnonzero(rewards <= 0), order[rewards[order] > 0]
    num_zero = round(len(zero) * num_kept / size)
    num_nonzero = num_kept - num_zero  # its own rounding too, except where both sides end in a half
    if num_zero <= (least := min(min_zero, len(zero))):
        num_zero, num_nonzero = least, num_kept - least
    if num_nonzero <= (least := min(min_nonzero, len(nonzero))):
        num_nonzero, num_zero = least, num_kept - least
    kept = np.zeros(size, np.bool_)
    kept[zero[:num_zero]] = kept[nonzero[:num_nonzero]] = True
    return kept


def resampling_metrics(rewards: np.ndarray, penalties: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """What resampling kept, all (N,): the share of both classes of reward, and the mean penalties."""
    positive = rewards > 0
    parts = {
        "roc/kept_positive_frac": kept[positive],
        "roc/kept_other_frac": kept[~positive],
        "roc/penalty_kept": penalties[kept],
        "roc/penalty_dropped": penalties[~kept],
    }
    return {name: float(values.mean()) for name, values in parts.items() if values.size}


def resample_groups(
    rewards: np.ndarray, penalties: np.ndarray, group_ids: np.ndarray, *, oversample: int
) -> np.ndarray:
    """`resample_on_correct` in each group, which keeps 1 / oversample of its members: bool (N,)."""
    kept = np.zeros(len(rewards), np.bool_)
    for group in np.unique(group_ids):
        members = group_ids == group
        num_kept = max(1, round(members.sum() / oversample))
        least = min(2, num_kept // 2)
        kept[members] = resample_on_correct(
            rewards[members], penalties[members], num_kept=num_kept, min_zero=least, min_nonzero=least
        )
    return kept
