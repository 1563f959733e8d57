"""Trajectories made by hand for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.episode import Episode, Score
from envs.messages import Message, StopReason, Task, message
from rollout.trajectory import Completion, Trajectory, TrajectoryError, TrajectoryGroup, Turn, VersionSpan

TASK = Task(id="calc-1-7", env="calc", messages=(message("user", "1+2=?"),), answer="3", level=1, seed=7)


def completion(
    token_ids: Sequence[int], logprobs: Sequence[float] | None = None, version: int = 0
) -> Completion:
    return Completion(
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs if logprobs is not None else [-0.5] * len(token_ids)),
        version_spans=(VersionSpan(version=version, start=0, end=len(token_ids)),),
        finish_reason="stop",
    )


def trajectory(
    name: str = "t",
    *,
    reward: float | None = 1.0,
    turns: Sequence[Turn] | None = None,
    said: Sequence[Message] = (),
    stop_reason: StopReason = StopReason.ANSWERED,
    metrics: dict[str, float] | None = None,
    timings_s: dict[str, float] | None = None,
    error: TrajectoryError | None = None,
    **score: Any,
) -> Trajectory:
    """One turn of prompt 1, 2 and answer 10, 11 unless `turns` says otherwise."""
    plain = Turn(parent=None, context_ids=(1, 2), completion=completion([10, 11]))
    return Trajectory(
        id=name,
        episode=Episode(
            task=TASK, transcript=(*TASK.messages, *said), stop_reason=stop_reason, metrics=metrics or {}
        ),
        turns=tuple(turns) if turns is not None else (plain,),
        score=Score(value=reward, **score),
        error=error,
        timings_s=timings_s or {},
    )


def group(*members: Trajectory, index: int = 0) -> TrajectoryGroup:
    return TrajectoryGroup(task=TASK, index=index, trajectories=members)
