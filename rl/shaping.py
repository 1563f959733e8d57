"""What is added to the rewards of a batch before advantages are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rl.advantages import overlong_penalty
from rl.batch import TrainBatch
from rl.layout import TokenArrays

if TYPE_CHECKING:
    from rl.policy_gradient import PolicyGradient

T = TypeVar("T")


def shaped_rewards(row: PolicyGradient, batch: TrainBatch) -> np.ndarray:
    """The rewards (N,), shaped by truncation and length where the row says so."""
    rewards = batch.rewards
    if row.truncated == "zero_reward":
        rewards = np.where(batch.truncated, 0.0, rewards)
    if row.max_response_length is not None and row.overlong_buffer_len is not None:
        rewards = rewards + overlong_penalty(
            batch.lengths,
            max_response_length=row.max_response_length,
            overlong_buffer_len=row.overlong_buffer_len,
            overlong_penalty_factor=row.overlong_penalty_factor,
        )
    return rewards


def token_kl(row: PolicyGradient, batch: TrainBatch) -> TokenArrays:
    """log π_old - log π_ref of each trained token (k1), 0 elsewhere; one array (T,) a sample."""
    anchors = batch.rollout_logprobs if row.bypass_mode else required(batch.old_logprobs, "old_logprobs", row)
    references = required(batch.ref_logprobs, "ref_logprobs", row)
    return tuple(
        np.where(sample.loss_mask, a, 0.0) - np.where(sample.loss_mask, b, 0.0)
        for sample, a, b in zip(batch.samples, anchors, references, strict=True)
    )


def less_kl(row: PolicyGradient, batch: TrainBatch, rewards: np.ndarray) -> np.ndarray:
    """The rewards (N,) less kl_coef times the KL to the reference, summed over each trajectory."""
    return rewards - row.kl_coef * batch.trajectory_sums(token_kl(row, batch)) if row.kl_coef else rewards


def kl_facts(row: PolicyGradient, batch: TrainBatch) -> dict[str, float]:
    """The KL that the rewards pay for, which an adaptive kl_coef follows, and its coefficient."""
    trained = [kl[s.loss_mask] for s, kl in zip(batch.samples, token_kl(row, batch), strict=True)]
    known = np.concatenate([np.zeros(0), *(kl[np.isfinite(kl)] for kl in trained)])
    facts = {"policy/kl_coef": row.kl_coef}
    return facts | ({"policy/kl_in_reward": float(known.mean())} if len(known) else {})


def required(value: T | None, name: str, row: PolicyGradient) -> T:
    """`value`, which a row needs; ValueError, with the call that makes it, when it is missing."""
    if value is None:
        made = name in ("advantages", "returns")
        if name == "trackers":
            raise ValueError(
                f"algorithm {row.name!r} learns from prompts' pasts: step with {row.name}.start()"
            )
        step = "assign_advantages" if made else f"learner.score(batch, {set(row.needs)})"
        raise ValueError(f"algorithm {row.name!r} needs {name}, which the batch lacks: call {step} first")
    return value
