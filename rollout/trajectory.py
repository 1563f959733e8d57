"""Turns, trajectories, groups: the token side of an episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from envs.episode import Episode, Score
from envs.messages import StopReason, Task
from envs.policy import Completion, FinishReason, VersionSpan

__all__ = [
    "Completion",
    "FailedAttempt",
    "FinishReason",
    "StopReason",
    "Trajectory",
    "TrajectoryError",
    "TrajectoryGroup",
    "Turn",
    "VersionSpan",
    "is_reward_error",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request to the policy: a node of the trajectory's tree.

    `context_ids` is what was appended after the parent's sampled ids (the whole prompt for a root), never a
    token that the policy sampled. `parent` is the index of an earlier turn, None for a fresh context.
    `reward` is the environment's shaping reward of the turn (StepResult.reward); rows with credit by turn use
    it, and no other.

    Example, a plain two-turn episode with prompt P, answers A0 and A1, tool reply E:
        turns[0] = Turn(parent=None, context_ids=P, completion=A0)
        turns[1] = Turn(parent=0,    context_ids=E, completion=A1)      # its prompt is P + A0 + E
    """

    parent: int | None
    context_ids: tuple[int, ...]
    completion: Completion
    reward: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryError:
    """The typed error of a world that failed: `kind` is the exception's class name.

    `retryable` says that another attempt was worth its while; `overdue`, that no time was left for it.
    """

    kind: str
    message: str
    retryable: bool = False
    overdue: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """An earlier attempt at a trajectory, which the world spoiled: why, and what had been sampled by then."""

    error: TrajectoryError
    num_sampled_tokens: int


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode with the exact tokens that made it. `score.value` None: unscored, trained on nowhere.

    `timings_s` splits the trajectory's wall time: generate, tools, reward. `call_s` are the wall seconds of
    each tool call, by its id. `attempts` are the earlier ones, of the same task and seeds: nothing of them is
    in the turns, their seconds are in `timings_s`. `close_error`: the world failed when all was done.
    """

    id: str
    episode: Episode
    turns: tuple[Turn, ...]
    score: Score
    error: TrajectoryError | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    call_s: dict[str, float] = field(default_factory=dict)
    attempts: tuple[FailedAttempt, ...] = ()
    close_error: TrajectoryError | None = None

    def __post_init__(self) -> None:
        for index, turn in enumerate(self.turns):
            if turn.parent is not None and not 0 <= turn.parent < index:
                raise ValueError(
                    f"trajectory {self.id}: turn {index} has parent {turn.parent}, not an earlier turn"
                )

    def prompt_ids(self, index: int) -> tuple[int, ...]:
        """The exact prompt of turn `index`.

        The path from its root, sampled ids included, its context last.
        """
        turn = self.turns[index]
        if turn.parent is None:
            return turn.context_ids
        parent = self.turns[turn.parent]
        return self.prompt_ids(turn.parent) + parent.completion.token_ids + turn.context_ids

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Turns that are nobody's parent: each becomes one training sample."""
        parents = {turn.parent for turn in self.turns}
        return tuple(index for index in range(len(self.turns)) if index not in parents)

    @property
    def num_sampled_tokens(self) -> int:
        return sum(len(turn.completion.token_ids) for turn in self.turns)

    @property
    def num_spent_tokens(self) -> int:
        """Sampled tokens of every attempt."""
        return self.num_sampled_tokens + sum(attempt.num_sampled_tokens for attempt in self.attempts)


def is_reward_error(trajectory: Trajectory) -> bool:
    """Whether the reward was asked for this trajectory and could not score it."""
    return trajectory.score.value is None and trajectory.score.error_kind != "" and trajectory.error is None


@dataclass(frozen=True, kw_only=True)
class TrajectoryGroup:
    """The trajectories that share one task: what GRPO and RLOO compare."""

    task: Task
    index: int  # the task's index in the task stream
    trajectories: tuple[Trajectory, ...]

    @property
    def rewards(self) -> list[float]:
        """The scored members' rewards, in order; unscored members are in no statistic."""
        return [t.score.value for t in self.trajectories if t.score.value is not None]
