"""How far the engine's log-probs are from the learner's on the same tokens: by dtype, turn and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rl.batch import TrainBatch
from rl.numerics import k3

BEYOND = 1e-2
"""A difference (nats) that is counted as large: 1 % of the probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGaps:
    """N sampled tokens, (N,) each: learner less engine in nats, turn and position in it, both from 0."""

    difference: np.ndarray
    turn: np.ndarray
    position: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class GapSummary:
    """Of n tokens, with d = log π_learner - log π_engine and w = exp d.

    k1 = mean of -d and k3 = mean of w - 1 - d estimate KL(engine || learner); chi2 = mean of w² less 1;
    `beyond` is the share of tokens with |d| above BEYOND.
    """

    num_tokens: int
    mean: float
    abs_mean: float
    abs_max: float
    k1: float
    k3: float
    chi2: float
    beyond: float


def token_gaps(batch: TrainBatch) -> TokenGaps:
    """Every trained token of a scored batch. Raises ValueError when it is not scored or has no token."""
    if batch.old_logprobs is None:
        raise ValueError("the batch has no old_logprobs; score it first")
    parts = [
        _of(sample.loss_mask, old - sample.rollout_logprobs)
        for sample, old in zip(batch.samples, batch.old_logprobs, strict=True)
    ]
    if not parts:
        raise ValueError("no token was sampled; look at the trajectories' errors")
    difference, turn, position = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return TokenGaps(difference=difference, turn=turn, position=position)


def _of(mask: np.ndarray, difference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A run of sampled tokens is a turn: context lies between two turns.

    Example: mask 0 1 1 0 1 -> turn 0 0 1, position 0 1 0
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    turn = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    places = np.arange(len(mask))
    return difference[mask], turn[mask], (places - first[np.maximum(turn, 0)])[mask]


def summarize(difference: np.ndarray) -> GapSummary:
    """The summary of differences (N,), in float64."""
    d = difference.astype(np.float64)
    w = np.exp(np.clip(d, -20.0, 20.0))
    return GapSummary(
        num_tokens=len(d),
        mean=float(d.mean()),
        abs_mean=float(np.abs(d).mean()),
        abs_max=float(np.abs(d).max()),
        k1=float(-d.mean()),
        k3=float(k3(torch.from_numpy(d)).mean()),
        chi2=float((w * w).mean() - 1.0),
        beyond=float((np.abs(d) > BEYOND).mean()),
    )


def by(
    groups: np.ndarray, difference: np.ndarray, edges: Sequence[int] | None = None
) -> dict[str, GapSummary]:
    """A summary for each value of `groups` (N,), or for each range between `edges`."""
    if edges is None:
        return {str(value): summarize(difference[groups == value]) for value in np.unique(groups).tolist()}
    ranges = list(zip(edges, [*edges[1:], np.iinfo(np.int64).max], strict=True))
    return {
        f"{low}-{high - 1}" if high < 10**9 else f"{low}+": summarize(difference[inside])
        for low, high in ranges
        if (inside := (groups >= low) & (groups < high)).any()
    }


def recommend(summary: GapSummary) -> str:
    """Which correction a gap calls for, by thresholds with their sources."""
    if summary.abs_max <= 1e-4:
        return "none: no token differs by more than 1e-4 nats, float32's own rounding"
    if abs(summary.k1) >= 1e-2:
        return (
            "do not train: |k1| is at least 0.01 nats, where a defect is likelier than rounding (tinker's "
            "known one was 0.09; dense models measure 2e-4, mixtures of experts 1e-3 to 2e-3). Compare "
            "dtypes, temperature, chat template and the served weights"
        )
    if summary.k3 >= 1e-3:
        return (
            "--rollout-is token_icepop --rollout-is-threshold 5 --rollout-is-threshold-lower 0.5: k3 is "
            "above the 1e-3 of a healthy run, so tokens outside the band are left out (IcePop's bounds)"
        )
    return (
        f"--rollout-is token_tis --rollout-is-threshold 2: k3 is {summary.k3:.1e}, below the 1e-3 of a "
        "healthy run, so a truncated importance weight is enough (verl's preset)"
    )
