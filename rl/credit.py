"""Credit assignment: from the rewards of a batch to one advantage for each trained token.

An estimator gives a trajectory one advantage, which all its tokens share (rl/advantages.py), each turn its
own (rl/turns.py), or each token (rl/token_advantages.py). All are rows of CREDITS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from envs.names import unknown_name
from rl.advantages import ADV_ESTIMATORS, AdvantageEstimator, gdpo, group_centered, opo, spo
from rl.batch import TrainBatch
from rl.filters import resample_groups, resampling_metrics
from rl.layout import TokenArrays
from rl.numerics import group_statistics
from rl.shaping import kl_facts, less_kl, required, shaped_rewards, token_kl
from rl.token_advantages import (
    gae,
    gigpo,
    mt_grpo,
    on_policy_distillation,
    reinforce_pp,
    token_rewards,
    vapo_gae,
    whiten,
)
from rl.turns import TurnTable, at_tokens

if TYPE_CHECKING:
    from rl.policy_gradient import PolicyGradient


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredit:
    """Advantages, and returns for a critic: one array (T,) a sample."""

    advantages: TokenArrays
    returns: TokenArrays | None = None


Credit = Callable[["PolicyGradient", TrainBatch, np.ndarray], TokenCredit]
"""(row, batch, shaped rewards (N,) float64) -> what every trained token is credited with."""


def assign_advantages(row: PolicyGradient, batch: TrainBatch) -> TrainBatch:
    """Fill in `advantages` and, for a critic, `returns`: estimated in float64, kept in float32."""
    if row.least_group > 1:
        _, place, sizes = np.unique(batch.group_ids, return_inverse=True, return_counts=True)
        batch = batch.drop(sizes[place] < row.least_group, reason="small_group")
    if row.oversample > 1:
        penalties = required(batch.penalties, "penalties", row)
        kept = resample_groups(batch.rewards, penalties, batch.group_ids, oversample=row.oversample)
        facts = resampling_metrics(batch.rewards, penalties, kept)
        batch = replace(batch.drop(~kept, reason="not_resampled"), facts=facts)
    if row.drop_uniform_groups:
        informative = group_statistics(batch.rewards, batch.group_ids).informative
        batch = batch.drop(~informative, reason="uninformative_group")
    if row.step_wise:
        batch = batch.by_turn()
    if row.kl_coef:
        batch = replace(batch, facts={**batch.facts, **kl_facts(row, batch)})
    credit = CREDITS[row.adv_estimator](row, batch, shaped_rewards(row, batch))
    batch = replace(batch, advantages=credit.advantages, returns=credit.returns)
    if row.truncated == "mask":  # after the statistics, in which they count
        batch = batch.mask(batch.truncated)
    return batch


def per_trajectory(
    estimator: AdvantageEstimator, row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray
) -> TokenCredit:
    """One advantage a trajectory, for all of its tokens; a KL in the reward is summed over the trajectory."""
    estimated = estimator(less_kl(row, batch, rewards), batch.group_ids)
    of = dict(zip(batch.trajectory_ids, estimated.tolist(), strict=True))
    advantages = (np.where(s.loss_mask, of[s.trajectory_id], 0.0) for s in batch.samples)
    return TokenCredit(advantages=tuple(array.astype(np.float32) for array in advantages))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRewards:
    """A batch as rows for estimators with one value a token: S samples, padded to T, float64.

    `rewards` (S, T): minus kl_coef times each token's KL, plus the trajectory's reward at the sample's last
    trained token.
    """

    rewards: np.ndarray
    mask: np.ndarray  # (S, T) bool
    lengths: tuple[int, ...]  # T of each sample

    @classmethod
    def of(cls, row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenRewards:
        mask = padded([sample.loss_mask for sample in batch.samples]).astype(bool)
        of = dict(zip(batch.trajectory_ids, rewards.tolist(), strict=True))
        kl = padded(token_kl(row, batch)) if row.kl_coef else np.zeros(mask.shape)
        tokens = token_rewards(
            np.array([of[sample.trajectory_id] for sample in batch.samples]),
            mask,
            kl=np.where(np.isfinite(kl), kl, 0.0),
            kl_coef=row.kl_coef,
        )
        lengths = tuple(len(sample.token_ids) for sample in batch.samples)
        return cls(rewards=tokens, mask=mask, lengths=lengths)

    def unpad(self, values: np.ndarray) -> TokenArrays:
        """Rows (S, T) as one float32 array (T,) a sample."""
        rows = zip(values, self.lengths, strict=True)
        return tuple(row[:length].astype(np.float32) for row, length in rows)


def padded(arrays: TokenArrays | list[np.ndarray]) -> np.ndarray:
    """Arrays of different length as rows (S, T) of float64, 0 beyond their ends."""
    rows = np.zeros((len(arrays), max(map(len, arrays), default=1)))
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array
    return rows


def whitened_returns(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """REINFORCE++."""
    tokens = TokenRewards.of(row, batch, rewards)
    return TokenCredit(advantages=tokens.unpad(reinforce_pp(tokens.rewards, tokens.mask, gamma=row.gamma)))


def whitened_differences(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """REINFORCE++-baseline: R - mean_g at each token, whitened over tokens, so that long rows count more."""
    differences = per_trajectory(group_centered, row, batch, rewards).advantages
    tokens = TokenRewards.of(row, batch, rewards)
    return TokenCredit(advantages=tokens.unpad(whiten(padded(differences), tokens.mask)))


def critic_advantages(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """PPO: generalized advantage estimation on the critic's values, whitened."""
    tokens = TokenRewards.of(row, batch, rewards)
    values = padded(required(batch.old_values, "old_values", row))
    if row.adv_estimator == "vapo":
        advantages, returns = vapo_gae(
            tokens.rewards,
            values,
            tokens.mask,
            alpha=row.length_adaptive_alpha,
            gamma=row.gamma,
            critic_lam=row.lam,
        )
    else:
        advantages, returns = gae(tokens.rewards, values, tokens.mask, gamma=row.gamma, lam=row.lam)
    whitened = whiten(advantages, tokens.mask)
    return TokenCredit(advantages=tokens.unpad(whitened), returns=tokens.unpad(returns))


def first_turn_credit(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """MT-GRPO: the first turn answers for its own reward besides the outcome."""
    table = TurnTable.of(required(batch.turns, "turns", row))
    advantages = mt_grpo(
        less_kl(row, batch, rewards),
        table.rewards[:, 0],
        batch.group_ids,
        table.turn_ids,
        table.mask,
        turn_advantage_coef=row.turn_advantage_coef,
    )
    return TokenCredit(advantages=at_tokens(advantages, batch.trajectory_ids, batch.samples))


def same_state_credit(
    norm_adv_by_std: Literal["group", "none"], row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray
) -> TokenCredit:
    """GiGPO: besides the episode, turns of a group that followed the same observation are compared."""
    table = TurnTable.of(required(batch.turns, "turns", row))
    outcomes = less_kl(row, batch, rewards)
    advantages = gigpo(
        outcomes,
        table.rewards_with(outcomes),
        table.states,
        table.mask,
        batch.group_ids,
        gamma=row.gamma,
        omega=row.turn_advantage_coef,
        norm_adv_by_std=norm_adv_by_std,
    )
    return TokenCredit(advantages=at_tokens(advantages, batch.trajectory_ids, batch.samples))


def parts_credit(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """GDPO: every part of the reward compared for itself; the reward that they make has no part in it."""
    del rewards
    parts = required(batch.reward_parts, "reward_parts", row)
    if not len(batch.rewards):
        return TokenCredit(advantages=())
    weights = row.reward_weights or dict.fromkeys((name for name in parts if "/" not in name), 1.0)
    if missing := [name for name in weights if name not in parts]:
        raise ValueError(unknown_name("part of every score, in reward_weights,", missing[0], parts))
    if not weights:
        raise ValueError(
            f"algorithm {row.name!r} compares the parts of a reward, and these scores have none in common; "
            "use a reward with parts, for instance rewards.weighted"
        )
    columns = np.stack([parts[name] for name in weights], axis=1)
    estimated = gdpo(columns, batch.group_ids, reward_weights=[*weights.values()], lengths=batch.lengths)
    return per_trajectory(lambda *_: estimated, row, batch, batch.rewards)


def distilled(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """On-policy distillation: the teacher's opinion of each sampled token; the rewards have no part in it."""
    del rewards
    student = batch.rollout_logprobs if row.bypass_mode else required(batch.old_logprobs, "old_logprobs", row)
    teacher = required(batch.teacher_logprobs, "teacher_logprobs", row)
    per_sample = (
        on_policy_distillation(
            own[None], given[None], sample.loss_mask[None], coef=row.opd_kl_coef, gamma=row.gamma
        )[0]
        for own, given, sample in zip(student, teacher, batch.samples, strict=True)
    )
    return TokenCredit(advantages=tuple(array.astype(np.float32) for array in per_sample))


def length_weighted(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """OPO."""
    return per_trajectory(partial(opo, lengths=batch.lengths), row, batch, rewards)


def tracked(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> TokenCredit:
    """SPO: compared with what was known of the prompt (rl/spo.py)."""
    alpha, beta = required(batch.trackers, "trackers", row).T
    return per_trajectory(lambda rewards, _: spo(rewards, alpha, beta), row, batch, rewards)


TOKEN_ESTIMATORS: dict[str, Credit] = {
    "reinforce_plus_plus": whitened_returns,
    "reinforce_plus_plus_baseline": whitened_differences,
    "gae": critic_advantages,
    "vapo": critic_advantages,
    "opd": distilled,
}
TURN_ESTIMATORS: dict[str, Credit] = {
    "mt_grpo": first_turn_credit,
    "gigpo": partial(same_state_credit, "none"),
    "gigpo_std": partial(same_state_credit, "group"),
}
CRITIC_ESTIMATORS = frozenset({"gae", "vapo"})
TEACHER_ESTIMATORS = frozenset({"opd"})
CREDITS: dict[str, Credit] = {
    **{name: partial(per_trajectory, estimator) for name, estimator in ADV_ESTIMATORS.items()},
    "opo": length_weighted,
    "gdpo": parts_credit,
    "spo": tracked,
    **TURN_ESTIMATORS,
    **TOKEN_ESTIMATORS,
}
"""Every adv_estimator."""


BUILT_IN = frozenset(CREDITS)


def compares_members(adv_estimator: str) -> bool:
    """Whether a built-in estimator compares the members of a group: one alone then has no advantage."""
    if adv_estimator in {"gdpo", "opo", "reinforce_plus_plus_baseline", *TURN_ESTIMATORS}:
        return True
    estimator = ADV_ESTIMATORS.get(adv_estimator)
    return estimator is not None and not estimator(np.ones(1), np.zeros(1, np.int64)).any()


def register_estimator(name: str, function: AdvantageEstimator) -> None:
    """Offer a user's estimator, (rewards (N,), group_ids (N,)) -> float64 (N,), as adv_estimator `name`.

    Raises:
        ValueError: the name is taken; at the first use, that it returned another shape or is not finite.
    """
    if name in CREDITS:
        raise ValueError(f"adv_estimator {name!r} exists already: give yours another name")

    def checked(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
        advantages = np.asarray(function(rewards, group_ids), np.float64)
        if advantages.shape != rewards.shape or not np.isfinite(advantages).all():
            raise ValueError(
                f"adv_estimator {name!r} returned {advantages.shape} with "
                f"{int((~np.isfinite(advantages)).sum())} numbers that are not finite; expected "
                f"{rewards.shape}, all finite: one advantage a trajectory"
            )
        return advantages

    CREDITS[name] = partial(per_trajectory, checked)
