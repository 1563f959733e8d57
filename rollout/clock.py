"""What the clock ended: the part of a run that no seed decides."""

from __future__ import annotations

from collections.abc import Iterable

from envs.messages import StopReason
from rewards.base import is_overdue
from rollout.agent import SlowStartError
from rollout.trajectory import Trajectory, TrajectoryGroup

OVERDUE_ERRORS = frozenset({SlowStartError.__name__})
"""`TrajectoryError.kind` of a world that did not answer in time."""


class ClockError(RuntimeError):
    """A run that must be bit-equal again met a trajectory that the clock ended."""


def ended_by_clock(trajectory: Trajectory) -> str:
    """What of `trajectory` depends on how fast this machine was, in words; "" for nothing.

    Another attempt is nothing of it: it has the seeds of the first, and gives what the first would have
    given. That no time was left for one is.
    """
    if trajectory.episode.stop_reason is StopReason.MAX_WALL_S:
        return "it was ended by max_wall_s"
    if trajectory.error is not None and trajectory.error.kind in OVERDUE_ERRORS:
        return f"its world was overdue: {trajectory.error.message}"
    if trajectory.error is not None and trajectory.error.overdue:
        return f"no time was left to play it again after {trajectory.error.kind}: {trajectory.error.message}"
    if trajectory.episode.metrics.get("tool_timeouts"):
        return "a tool ran out of its timeout_s, and the policy was told so"
    if is_overdue(trajectory.score):
        return f"it is unscored because its reward was overdue: {trajectory.score.error}"
    return ""


def require_no_clock(groups: Iterable[TrajectoryGroup]) -> None:
    """Raise ClockError where another run from the same seed need not meet the same trajectories."""
    for group in groups:
        for trajectory in group.trajectories:
            if cause := ended_by_clock(trajectory):
                raise ClockError(
                    f"determinism = 'exact', but trajectory {trajectory.id} depends on the clock: {cause}. "
                    "Raise the limit that it met (--max-wall-s, the tool's timeout_s), make what was slow "
                    "faster, or take --determinism fast, where such a trajectory is data like any other"
                )
