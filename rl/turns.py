"""Credit by turn: what a batch knows of its trajectories' turns, and from turns to their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np

from rl.layout import TokenArrays
from rl.samples import TrainSample
from rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFacts:
    """What credit by turn asks of one trajectory's K turns, in the order of `Trajectory.turns`.

    `rewards` (K,) float64: the environment's shaping reward of each turn, Turn.reward. `states` (K,) int64:
    equal where the turns followed the same observation, the tokens that were appended before them; the
    opening turns of a group, which share their prompt, have one state.
    """

    rewards: np.ndarray
    states: np.ndarray

    @classmethod
    def of(cls, trajectory: Trajectory) -> Self:
        digests = (
            blake2b(np.array(turn.context_ids, np.int64).tobytes(), digest_size=8).digest()
            for turn in trajectory.turns
        )
        return cls(
            rewards=np.array([turn.reward for turn in trajectory.turns], np.float64),
            states=np.array([int.from_bytes(digest, "big", signed=True) for digest in digests], np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTable:
    """The turns of N trajectories as rows, padded to the longest: all (N, K), K at least 1."""

    rewards: np.ndarray  # float64
    states: np.ndarray  # int64
    mask: np.ndarray  # bool, the turns that there were

    @classmethod
    def of(cls, turns: Sequence[TurnFacts]) -> Self:
        shape = (len(turns), max([1, *(len(facts.rewards) for facts in turns)]))
        table = cls(rewards=np.zeros(shape), states=np.zeros(shape, np.int64), mask=np.zeros(shape, np.bool_))
        for row, facts in enumerate(turns):
            known = slice(len(facts.rewards))
            table.rewards[row, known], table.states[row, known] = facts.rewards, facts.states
            table.mask[row, known] = True
        return table

    @property
    def turn_ids(self) -> np.ndarray:
        """(N, K), the number of each turn."""
        return np.broadcast_to(np.arange(self.mask.shape[1]), self.mask.shape)

    def rewards_with(self, outcomes: np.ndarray) -> np.ndarray:
        """(N, K): the turns' rewards, and each trajectory's outcome (N,) besides in its last turn."""
        rewards, rows = self.rewards.copy(), np.flatnonzero(self.mask.any(1))
        rewards[rows, self.mask[rows].sum(1) - 1] += np.asarray(outcomes, np.float64)[rows]
        return rewards


def at_tokens(
    values: np.ndarray, trajectory_ids: Sequence[str], samples: Sequence[TrainSample]
) -> TokenArrays:
    """One value a turn, (N, K), at each trained token of that turn: float32 (T,) a sample."""
    row_of = {name: row for row, name in enumerate(trajectory_ids)}
    per_sample = (
        np.where(sample.loss_mask, values[row_of[sample.trajectory_id], sample.turn_ids], 0.0)
        for sample in samples
    )
    return tuple(array.astype(np.float32) for array in per_sample)
