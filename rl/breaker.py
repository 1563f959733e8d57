"""The breaker: a run ends when the world or the reward fails too many of its episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.outcomes import counted, failure_of, failures_of, failures_told
from rollout.trajectory import TrajectoryGroup

LEAST_EPISODES = 32
"""Before so many episodes are known (or a window of them, where it is smaller) no share of them says much."""


@dataclass(slots=True, kw_only=True)
class Breaker:
    """Watches the share of failed episodes among the last `error_window`, in stream order, step after step.

    It trips when the share is above `max_error_rate`, and when a step has no scored trajectory at all. An
    episode that a later attempt saved has not failed, and one that its reward did not score on purpose has
    not either.
    """

    max_error_rate: float = 0.5
    error_window: int = 256
    _kinds: deque[str] = field(default_factory=deque)  # of the window's episodes; "" did not fail
    _latest: str = ""

    def state(self) -> dict[str, Any]:
        """What it remembers of the steps before."""
        return {"kinds": list(self._kinds), "latest": self._latest}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._kinds, self._latest = deque(state["kinds"]), state["latest"]

    def problem(self, groups: Sequence[TrajectoryGroup]) -> str:
        """Why the run must end after a step that sampled `groups`; "" while it may go on."""
        self._watch(groups)
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        if trajectories and all(trajectory.score.value is None for trajectory in trajectories):
            return (
                f"none of the {len(trajectories)} trajectories has a score, there is nothing to learn from: "
                f"{failures_told(failures_of(groups)) or 'the reward gave none on purpose'}. {MEND}"
            )
        failed = [kind for kind in self._kinds if kind]
        known, least = len(self._kinds), min(LEAST_EPISODES, self.error_window)
        if known >= least and len(failed) > self.max_error_rate * known:
            return (
                f"{len(failed)} of the last {known} episodes failed by the world or the reward "
                f"({counted(failed)}), more than --max-error-rate {self.max_error_rate:g}; the latest: "
                f"{self._latest}. {MEND}, or raise --max-error-rate"
            )
        return ""

    def _watch(self, groups: Iterable[TrajectoryGroup]) -> None:
        for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
            failure = failure_of(trajectory)
            self._kinds.append(failure.kind if failure else "")
            self._latest = str(failure) if failure else self._latest
        while len(self._kinds) > self.error_window:
            self._kinds.popleft()


MEND = "Look at these trajectories with scripts.view and mend what failed"
