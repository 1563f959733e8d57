"""What became of a trajectory: whether it can be trained on, and who spoiled it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from rollout.trajectory import Trajectory, TrajectoryGroup

MAX_MESSAGE_CHARS = 300
"""Of a failure's own words in a line that tells of it."""


def drop_reason(trajectory: Trajectory) -> str:
    """Why `trajectory` is in no statistic and in no loss: error/<kind>, unscored/<kind>, or unscored where a
    reward gave none on purpose, nonfinite_score; "" where nothing is wrong with it.
    """
    score = trajectory.score
    if trajectory.error is not None:
        return f"error/{trajectory.error.kind}"
    if score.value is None:
        return f"unscored/{score.error_kind}" if score.error_kind else "unscored"
    return "" if isfinite(score.value) else "nonfinite_score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the world or the reward did to a trajectory; `kind` is an error's, or `reward <error_kind>`."""

    kind: str
    trajectory_id: str
    message: str

    def __str__(self) -> str:
        words = " ".join(self.message.split())
        cut = words if len(words) <= MAX_MESSAGE_CHARS else words[:MAX_MESSAGE_CHARS] + "..."
        return f"trajectory {self.trajectory_id}: {self.kind}: {cut}"


def failure_of(trajectory: Trajectory) -> Failure | None:
    """Who failed `trajectory`; None where nobody did, also where a reward gave no score on purpose."""
    error, score = trajectory.error, trajectory.score
    if error is not None:
        return Failure(kind=error.kind, trajectory_id=trajectory.id, message=error.message)
    reason = drop_reason(trajectory)
    if reason in ("", "unscored"):
        return None
    kind = f"reward {score.error_kind or reason}"
    return Failure(kind=kind, trajectory_id=trajectory.id, message=score.error or f"score {score.value}")


def failures_of(groups: Iterable[TrajectoryGroup]) -> list[Failure]:
    """The failures of all trajectories, in order."""
    found = (failure_of(trajectory) for group in groups for trajectory in group.trajectories)
    return [failure for failure in found if failure is not None]


def counted(kinds: Iterable[str]) -> str:
    """Kinds with their numbers, the most frequent first: "SandboxError 9, reward timeout 3"."""
    return ", ".join(f"{kind} {count}" for kind, count in Counter(kinds).most_common())


def failures_told(failures: Sequence[Failure]) -> str:
    """Causes by kind, and the latest in its own words; "" without any."""
    if not failures:
        return ""
    return f"{counted(failure.kind for failure in failures)}; the latest: {failures[-1]}"
