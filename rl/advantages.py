"""Advantage estimators: pure functions from the rewards of trajectories to one advantage a trajectory.

Each takes rewards (N,), most of them group_ids (N,), and returns float64 (N,). A group of one, and a group
whose rewards are all equal, gets exactly 0 from every estimator that compares within groups: there is nothing
to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from envs.names import unknown_name
from rl.numerics import GroupStatistics, group_statistics

STD_EPS = 1e-6
"""Added to a standard deviation, outside the root (verl, core_algos.py, compute_grpo_outcome_advantage)."""

WHITEN_EPS = 1e-8
"""Added to a variance, inside the root (verl, masked_whiten)."""

NormAdvByStd = Literal["group", "batch", "none"]
BatchStdOf = Literal["rewards", "centered"]


def reinforce(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = R, no baseline (Williams 1992)."""
    del group_ids
    return np.array(rewards, np.float64)


def group_centered(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = R - mean_g (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    return _centered(rewards, group_statistics(rewards, group_ids))


def group_normalized(rewards: np.ndarray, group_ids: np.ndarray, *, eps: float = STD_EPS) -> np.ndarray:
    """A = (R - mean_g) / (std_g + eps), divisor n - 1 (GRPO, arXiv 2402.03300, section 4.1.2)."""
    statistics = group_statistics(rewards, group_ids)
    return _divided(_centered(rewards, statistics), statistics.std + eps)


def batch_normalized(
    rewards: np.ndarray, group_ids: np.ndarray, *, std_of: BatchStdOf = "rewards", eps: float = STD_EPS
) -> np.ndarray:
    """A = (R - mean_g) / (std of the batch + eps), divisor N - 1 (Lite PPO, arXiv 2508.08221).

    `std_of`: all rewards (TRL, scale_rewards="batch"), or R - mean_g (AReaL and ROLL), which leaves out how
    much the prompts differ in difficulty.
    """
    centered = group_centered(rewards, group_ids)
    spread = centered if std_of == "centered" else np.asarray(rewards, np.float64)
    std = spread.std(ddof=1) if spread.size > 1 else 0.0
    return _divided(centered, np.full(centered.shape, std + eps))


def group_relative(
    rewards: np.ndarray,
    group_ids: np.ndarray,
    *,
    norm_adv_by_std: NormAdvByStd = "group",
    std_of: BatchStdOf = "rewards",
    eps: float = STD_EPS,
) -> np.ndarray:
    """R - mean_g over the group's std (GRPO), the batch's (Lite PPO, `std_of`) or nothing (Dr. GRPO).

    Raises:
        ValueError: norm_adv_by_std is none of the three.
    """
    if norm_adv_by_std == "group":
        return group_normalized(rewards, group_ids, eps=eps)
    if norm_adv_by_std == "batch":
        return batch_normalized(rewards, group_ids, std_of=std_of, eps=eps)
    if norm_adv_by_std == "none":
        return group_centered(rewards, group_ids)
    raise ValueError(unknown_name("norm_adv_by_std", norm_adv_by_std, get_args(NormAdvByStd)))


def rloo(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = R - mean of the others in the group = n / (n - 1) (R - mean_g) (RLOO, arXiv 2402.14740)."""
    statistics = group_statistics(rewards, group_ids)
    return _centered(rewards, statistics) * statistics.size / np.maximum(statistics.size - 1, 1)


def opo(rewards: np.ndarray, group_ids: np.ndarray, *, lengths: np.ndarray) -> np.ndarray:
    """A = R - Σ n_j R_j / Σ n_j over the group (OPO, arXiv 2505.23585).

    `lengths` (N,) are the sampled tokens n: the baseline of least variance weighs a trajectory by the size of
    its gradient, for which its length stands. A group without a token gets 0.
    """
    rewards, lengths = np.asarray(rewards, np.float64), np.asarray(lengths, np.float64)
    group, total = _group_sums(group_ids, lengths)
    baseline = _divided(_group_sums(group_ids, lengths * rewards)[1], total)
    compared = group_statistics(rewards, group_ids).informative & (total[group] > 0)
    return np.where(compared, rewards - baseline[group], 0.0)


def gpg(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """A = α (R - mean_g), α = N / #{R ≠ 0} of the batch (GPG, arXiv 2504.02546; verl)."""
    alpha = len(rewards) / max(np.count_nonzero(rewards), 1)
    return alpha * group_centered(rewards, group_ids)


def remax(rewards: np.ndarray, greedy_rewards: np.ndarray) -> np.ndarray:
    """A = R - R of the greedy rollout of the same prompt, both (N,) (ReMax, arXiv 2310.10505)."""
    return np.asarray(rewards, np.float64) - np.asarray(greedy_rewards, np.float64)


def grpo_passk(
    rewards: np.ndarray,
    group_ids: np.ndarray,
    *,
    norm_adv_by_std: Literal["group", "none"] = "group",
    eps: float = STD_EPS,
) -> np.ndarray:
    """The best of a group gets (R_max - R_second) / (std_g + eps), all others 0 (arXiv 2503.19595; verl)."""
    rewards = np.asarray(rewards, np.float64)
    statistics = group_statistics(rewards, group_ids)
    group, _ = _group_sums(group_ids, rewards)
    order = np.lexsort((-rewards, group))  # by group, best first, the earlier of equals first
    best = np.flatnonzero(np.diff(group[order], prepend=-1))
    second = np.minimum(best + 1, len(order) - 1)
    advantages = np.zeros(rewards.shape)
    advantages[order[best]] = rewards[order[best]] - rewards[order[second]]
    scale = statistics.std + eps if norm_adv_by_std == "group" else np.ones(rewards.shape)
    return np.where(statistics.informative, _divided(advantages, scale), 0.0)


def maxrl(rewards: np.ndarray, group_ids: np.ndarray, *, eps: float = 0.0) -> np.ndarray:
    """A = (R - mean_g) / (mean_g + eps): 1/p weighs hard prompts up (MaxRL, arXiv 2602.02710).

    For rewards that are not negative; a group whose mean is not positive has no success to learn from: 0.
    """
    statistics = group_statistics(rewards, group_ids)
    scale = np.where(statistics.mean > 0, statistics.mean + eps, 0.0)
    return _divided(_centered(rewards, statistics), scale)


def opmd(
    rewards: np.ndarray,
    group_ids: np.ndarray,
    *,
    tau: float = 1.0,
    baseline: Literal["logavgexp", "mean"] = "logavgexp",
) -> np.ndarray:
    """A = R - τ log mean_g exp(R / τ), or R - mean_g, the limit for large τ (Trinity-RFT, arXiv 2505.17826).

    Raises:
        ValueError: τ is not positive.
    """
    if not tau > 0:
        raise ValueError(f"tau = {tau}: expected more than 0, in units of reward")
    if baseline == "mean":
        return group_centered(rewards, group_ids)
    rewards = np.asarray(rewards, np.float64)
    statistics = group_statistics(rewards, group_ids)
    group, _ = _group_sums(group_ids, rewards)
    highest = np.full(group.max(initial=-1) + 1, -np.inf)
    np.maximum.at(highest, group, rewards)
    # Shifted by the group's best reward, exp sees nothing above 0.
    _, sums = _group_sums(group_ids, np.exp((rewards - highest[group]) / tau))
    soft_maximum = highest[group] + tau * np.log(sums[group] / statistics.size)
    return np.where(statistics.informative, rewards - soft_maximum, 0.0)


def gdpo(
    parts: np.ndarray,
    group_ids: np.ndarray,
    *,
    reward_weights: Sequence[float] | np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    eps: float = STD_EPS,
) -> np.ndarray:
    """Each part of the reward normalized in its group; their weighted sum whitened (GDPO, arXiv 2601.05242).

    Args:
        parts: (N, K), the K parts of N rewards.
        reward_weights: (K,); 1 each where None.
        lengths: (N,) sampled tokens. The whitening is over tokens as in verl, so that long trajectories weigh
            more; None counts every trajectory once.
        eps: of the division within groups.
    """
    parts = np.asarray(parts, np.float64)
    columns = [group_normalized(part, group_ids, eps=eps) for part in parts.T]
    weights = np.ones(parts.shape[1]) if reward_weights is None else np.asarray(reward_weights, np.float64)
    total = np.stack(columns, 1) @ weights
    return whitened(total, np.ones(len(parts)) if lengths is None else lengths)


def spo(rewards: np.ndarray, alpha: np.ndarray, beta: np.ndarray, *, eps: float = 1e-8) -> np.ndarray:
    """A = R - α / (α + β), then (A - mean) / (std + eps) over the batch (SPO, arXiv 2509.13232).

    `alpha`, `beta` (N,): each prompt's BetaTracker (rl/critic.py) as it was before the batch's rewards. The
    whitening is over trajectories with eps outside the root, as in SPO's recipe for verl, divisor N - 1. A
    batch of one, and differences that are all equal, get 0.
    """
    values = np.asarray(alpha, np.float64) / (np.asarray(alpha, np.float64) + np.asarray(beta, np.float64))
    differences = np.asarray(rewards, np.float64) - values
    return group_normalized(differences, np.zeros(differences.shape, np.int64), eps=eps)


def ema_centered(rewards: np.ndarray, baseline: float, *, decay: float) -> tuple[np.ndarray, float]:
    """A = R - b, with b ← decay · b + (1 - decay) R after each trajectory in turn (SPIRAL, arXiv 2506.24119).

    A reward is compared before it enters the baseline. An environment with several roles has one for each.

    Returns:
        The advantages (N,), and the baseline for the next batch.
    """
    advantages = np.zeros(len(rewards))
    for index, reward in enumerate(np.asarray(rewards, np.float64).tolist()):
        advantages[index] = reward - baseline
        baseline = decay * baseline + (1.0 - decay) * reward
    return advantages, baseline


def whitened(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + 1e-8) over a batch in which each value counts `counts` times (same shape).

    The variance's divisor is Σ counts - 1; with a sum of at most 1 all are 0, and so are values that are all
    equal. Where the count is 0 nothing enters the statistics, whatever stands there. A value that counts and
    is not finite stays so, and stays out of the statistics: one bad token must not take the batch with it.
    """
    values, counts = np.asarray(values, np.float64), np.asarray(counts, np.float64)
    known = (counts > 0) & np.isfinite(values)
    x, weight = values[known], counts[known]
    total = weight.sum()
    if total <= 1:
        return np.zeros(values.shape)
    # From the first value on, so that equal values have exactly themselves as mean.
    mean = x[0] + (weight * (x - x[0])).sum() / total
    variance = (weight * (x - mean) ** 2).sum() / (total - 1)
    return (values - mean) / np.sqrt(variance + WHITEN_EPS)


def _centered(rewards: np.ndarray, statistics: GroupStatistics) -> np.ndarray:
    return np.where(statistics.informative, np.asarray(rewards, np.float64) - statistics.mean, 0.0)


def _divided(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x / scale; 0 where the scale is 0."""
    return np.divide(x, scale, out=np.zeros(x.shape), where=scale > 0)


def _group_sums(group_ids: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's group as 0, 1, ... (N,), and the sums of x (N,) over them."""
    _, group = np.unique(np.asarray(group_ids), return_inverse=True)
    return group, np.bincount(group, x)


AdvantageEstimator = Callable[[np.ndarray, np.ndarray], np.ndarray]

ADV_ESTIMATORS: dict[str, AdvantageEstimator] = {
    "reinforce": reinforce,
    "dr_grpo": group_centered,
    "grpo": group_normalized,
    "lite_ppo": batch_normalized,
    "rloo": rloo,
    "gpg": gpg,
    "grpo_passk": grpo_passk,
    "maxrl": maxrl,
    "opmd": opmd,
}
"""The estimators that need rewards and groups alone."""


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
