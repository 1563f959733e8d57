"""Advantages that differ from token to token: returns, whitening, generalized advantage estimation, turns.

Arrays are (S, T) float64, one row a training sample; `mask` (S, T) bool is true at the tokens that the policy
sampled. What stands at other positions (prompts, tool results, padding) is never read, and is 0 in the
results: a tool result is no step of the policy's, so nothing is discounted or ends there. A sampled token's
input that is not finite makes the results that it enters not finite (its row's, up to it), which the loss
leaves out and counts; other rows are as they would be.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rl.advantages import STD_EPS, group_centered, group_normalized, group_relative, whitened


def selected(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`x` in float64 where `mask` is true, 0 elsewhere, whatever is there."""
    return np.where(mask, np.asarray(x, np.float64), 0.0)


def broadcast(advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One value a row (S,), at each of its sampled tokens."""
    return selected(mask, np.asarray(advantages)[:, None])


def token_rewards(
    rewards: np.ndarray, mask: np.ndarray, *, kl: np.ndarray | None = None, kl_coef: float = 0.0
) -> np.ndarray:
    """r_t = -kl_coef · kl_t, and the row's reward (S,) besides at its last sampled token (arXiv 2203.02155).

    `kl` (S, T): an estimate of each token's KL to the reference, nats.
    """
    tokens = np.zeros(mask.shape) if kl is None else -kl_coef * selected(mask, kl)
    rows = np.flatnonzero(mask.any(1))
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    tokens[rows, last] += np.asarray(rewards, np.float64)[rows]
    return tokens


def discounted_sums(values: np.ndarray, mask: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    """G_t = v_t + factor · G_t', with t' the next sampled token of the row; 0 after the last.

    `factor`: one for all, or one a row (S,).
    """
    values = selected(mask, values)
    sums, carried = np.zeros(values.shape), np.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        carried = np.where(mask[:, t], values[:, t] + factor * carried, carried)
        sums[:, t] = carried
    return np.where(mask, sums, 0.0)


def next_values(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The value at the next sampled token of the row; 0 after the last."""
    following, carried = np.zeros(values.shape), np.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        following[:, t] = carried
        carried = np.where(mask[:, t], values[:, t], carried)
    return np.where(mask, following, 0.0)


def whiten(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + 1e-8) over all sampled tokens, var with divisor n - 1; 0 for fewer than two."""
    return np.where(mask, whitened(values, mask), 0.0)


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    *,
    gamma: float = 1.0,
    lam: float | np.ndarray = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Generalized advantage estimation over the sampled tokens alone (arXiv 1506.02438, eq. 16).

    δ_t = r_t + γ V_t' - V_t and A_t = δ_t + γ λ A_t', with t' the next sampled token, V 0 after the last.
    `lam`: one λ for all, or one a row (S,).

    Returns:
        advantages, not whitened, and returns A + V, what the critic learns.
    """
    values = selected(mask, values)
    deltas = selected(mask, rewards) + gamma * next_values(values, mask) - values
    advantages = discounted_sums(deltas, mask, gamma * lam)
    return advantages, np.where(mask, advantages + values, 0.0)


def length_adaptive_lam(mask: np.ndarray, *, alpha: float) -> np.ndarray:
    """λ_i = 1 - 1 / (α n_i), at least 0, for rows (S,) of n_i sampled tokens: credit reaches α n_i tokens."""
    return 1.0 - 1.0 / np.maximum(alpha * mask.sum(1), 1.0)


def vapo_gae(
    rewards: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    *,
    alpha: float = 0.05,
    gamma: float = 1.0,
    critic_lam: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """GAE whose λ grows with a row's length; the critic learns with its own λ (VAPO, arXiv 2504.05118).

    Returns:
        advantages with λ = 1 - 1 / (α n), and returns with λ = critic_lam; at 1 they are the rewards to come.
    """
    lam = length_adaptive_lam(mask, alpha=alpha)
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=lam)
    _, returns = gae(rewards, values, mask, gamma=gamma, lam=critic_lam)
    return advantages, returns


def reinforce_pp(rewards: np.ndarray, mask: np.ndarray, *, gamma: float = 1.0) -> np.ndarray:
    """Whitened discounted returns of `token_rewards`, the KL among them (REINFORCE++, arXiv 2501.03262)."""
    return whiten(discounted_sums(rewards, mask, gamma), mask)


def reinforce_pp_baseline(rewards: np.ndarray, group_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """R - mean_g (rewards and groups (S,)) at each token, whitened over tokens (arXiv 2501.03262).

    Long rows weigh more in the mean and the variance. A group of one enters as 0.
    """
    return whiten(broadcast(group_centered(rewards, group_ids), mask), mask)


def on_policy_distillation(
    logprobs: np.ndarray,
    teacher_logprobs: np.ndarray,
    mask: np.ndarray,
    *,
    coef: float = 1.0,
    gamma: float = 0.0,
) -> np.ndarray:
    """A_t = -coef (log π - log π_teacher)_t: the reverse KL to the teacher by token (arXiv 2306.13649).

    `logprobs` are the sampler's or the learner's before the update. With γ > 0 a token also answers for what
    follows it, discounted.
    """
    gap = selected(mask, logprobs) - selected(mask, teacher_logprobs)
    return discounted_sums(-coef * gap, mask, gamma)


def per_turn(values: np.ndarray, turn_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values (S, K) of K turns, at the tokens of each: turn_ids (S, T) in [0, K) where the mask is true.

    Raises:
        ValueError: a sampled token belongs to no turn.
    """
    rows, columns = np.nonzero(mask)
    turns = np.asarray(turn_ids)[rows, columns].astype(np.int64)
    if turns.size and not 0 <= turns.min() <= turns.max() < values.shape[1]:
        raise ValueError(
            f"turn_ids of sampled tokens run from {turns.min()} to {turns.max()}; "
            f"expected 0 to {values.shape[1] - 1}, one of the {values.shape[1]} turns"
        )
    tokens = np.zeros(mask.shape)
    tokens[rows, columns] = values[rows, turns]
    return tokens


def mt_grpo(
    outcome_rewards: np.ndarray,
    turn_rewards: np.ndarray,
    group_ids: np.ndarray,
    turn_ids: np.ndarray,
    mask: np.ndarray,
    *,
    turn_advantage_coef: float = 1.0,
    eps: float = 1e-4,
) -> np.ndarray:
    """A_outcome + turn_advantage_coef · A_turn in the first turn, then A_outcome (MT-GRPO, arXiv 2505.11821).

    Both are group-normalized. `outcome_rewards`, `turn_rewards` (the first turn's), `group_ids` (S,);
    `turn_ids` (S, T), 0 in the first turn; the authors' code has eps 1e-4.
    """
    outcome = group_normalized(outcome_rewards, group_ids, eps=eps)
    turn = group_normalized(turn_rewards, group_ids, eps=eps)
    in_first_turn = mask & (np.asarray(turn_ids) == 0)
    return broadcast(outcome, mask) + turn_advantage_coef * broadcast(turn, in_first_turn)


def gigpo(
    rewards: np.ndarray,
    step_rewards: np.ndarray,
    anchors: np.ndarray,
    step_mask: np.ndarray,
    group_ids: np.ndarray,
    *,
    gamma: float = 0.95,
    omega: float = 1.0,
    norm_adv_by_std: Literal["group", "none"] = "none",
    eps: float = STD_EPS,
) -> np.ndarray:
    """A_episode + ω A_step for each of K steps (S, K), to be spread by `per_turn` (GiGPO, arXiv 2505.10978).

    The step part compares R_k = Σ_j≥k γ^(j - k) r_j among the group's steps that began in the same state. The
    episode part has one value a trajectory, however many steps it took. A state seen once gets 0.

    Args:
        rewards: (S,), of the episodes.
        step_rewards: (S, K).
        anchors: (S, K), equal for equal states: integers or strings.
        step_mask: (S, K) bool, true at the steps that were taken.
        group_ids: (S,).
        norm_adv_by_std: divide both parts by their groups' std, or by 1 (F_norm in the paper).
    """
    episode = group_relative(rewards, group_ids, norm_adv_by_std=norm_adv_by_std, eps=eps)
    step_returns = discounted_sums(step_rewards, step_mask, gamma)[step_mask]
    _, group = np.unique(np.asarray(group_ids), return_inverse=True)
    _, anchor = np.unique(np.asarray(anchors)[step_mask], return_inverse=True)
    state = np.broadcast_to(group[:, None], step_mask.shape)[step_mask] * (anchor.max(initial=0) + 1) + anchor
    advantages = broadcast(episode, step_mask)
    advantages[step_mask] += omega * group_relative(
        step_returns, state, norm_adv_by_std=norm_adv_by_std, eps=eps
    )
    return advantages
