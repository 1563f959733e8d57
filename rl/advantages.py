"""Advantage estimators: pure functions from the rewards of trajectories to one advantage a trajectory.

Each takes rewards (N,) and group_ids (N,) and returns float64 (N,). A group of one, and a group whose rewards
are all equal, gets exactly 0 from every estimator that compares: there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rl.numerics import GroupStatistics, group_statistics

STD_EPS = 1e-6
"""Added to a standard deviation, outside the root (verl, core_algos.py, compute_grpo_outcome_advantage)."""


def reinforce(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = R, no baseline (Williams 1992)."""
    del group_ids
    return np.array(rewards, np.float64)


def group_centered(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = R - mean_g (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    return _centered(rewards, group_statistics(rewards, group_ids))


def group_normalized(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = (R - mean_g) / (std_g + 1e-6), divisor n - 1 (GRPO, arXiv 2402.03300, section 4.1.2)."""
    statistics = group_statistics(rewards, group_ids)
    return _centered(rewards, statistics) / (statistics.std + STD_EPS)


def batch_normalized(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = (R - mean_g) / (std of all rewards + 1e-6), divisor N - 1 (Lite PPO, arXiv 2508.08221)."""
    rewards = np.asarray(rewards, np.float64)
    std = rewards.std(ddof=1) if rewards.size > 1 else 0.0
    return _centered(rewards, group_statistics(rewards, group_ids)) / (std + STD_EPS)


def rloo(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = R - mean of the others in the group = n / (n - 1) (R - mean_g) (RLOO, arXiv 2402.14740)."""
    statistics = group_statistics(rewards, group_ids)
    return _centered(rewards, statistics) * statistics.size / np.maximum(statistics.size - 1, 1)


def _centered(rewards: np.ndarray, statistics: GroupStatistics) -> np.ndarray:
    return np.where(statistics.informative, np.asarray(rewards, np.float64) - statistics.mean, 0.0)


AdvantageEstimator = Callable[[np.ndarray, np.ndarray], np.ndarray]

ADV_ESTIMATORS: dict[str, AdvantageEstimator] = {
    "reinforce": reinforce,
    "dr_grpo": group_centered,
    "grpo": group_normalized,
    "lite_ppo": batch_normalized,
    "rloo": rloo,
}


def overlong_penalty(
    lengths: np.ndarray,
    *,
    max_response_length: int,
    overlong_buffer_len: int,
    overlong_penalty_factor: float = 1.0,
) -> np.ndarray:
    """What is added to the reward of a response that uses up its length (DAPO, arXiv 2503.14476, eq. 13).

    0 up to max_response_length - overlong_buffer_len, then falling linearly to -overlong_penalty_factor at
    max_response_length, and constant beyond it. `lengths` (N,) count sampled tokens: tool output is not the
    policy's to shorten.
    """
    excess = np.asarray(lengths, np.float64) - (max_response_length - overlong_buffer_len)
    return -overlong_penalty_factor * np.clip(excess / overlong_buffer_len, 0.0, 1.0)


def group_fractions(rewards: np.ndarray, group_ids: np.ndarray) -> tuple[float, float]:
    """Fractions of the groups that teach nothing: (all rewards equal, one member). (0, 0) if none."""
    _, first = np.unique(group_ids, return_index=True)
    if not first.size:
        return 0.0, 0.0
    statistics = group_statistics(rewards, group_ids)
    return float(statistics.uniform[first].mean()), float((statistics.size[first] == 1).mean())
