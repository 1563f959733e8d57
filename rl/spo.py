"""SPO's critic of one number a prompt, which a run carries from step to step (arXiv 2509.13232)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rl.batch import TrainBatch
from rl.critic import BetaTracker

if TYPE_CHECKING:
    from rl.policy_gradient import PolicyGradient


@dataclass(kw_only=True)
class PromptBaselines:
    """A row whose baselines are the success rates of prompts; only what a run does with the row.

    A prompt seen before is compared with what was known of it before this step. What is known fades with the
    policy's way since then, the sum of the steps' policy/approx_kl_k3 (nats a token), a mean over a step's
    updates that each sees what was before it: the last one is not counted. Rewards must be in
    [0, 1]. The recipe's sampling of prompts by their uncertainty is not here: the task stream decides.
    """

    row: PolicyGradient
    trackers: dict[str, BetaTracker] = field(default_factory=dict)
    way: float = 0.0
    """Nats a token that the policy has moved since the start."""
    way_when_seen: dict[str, float] = field(default_factory=dict)

    def needs_for(self, num_updates: int) -> frozenset[str]:
        """As PolicyGradient's."""
        return self.row.needs_for(num_updates)

    def assign_advantages(self, batch: TrainBatch) -> TrainBatch:
        """Advantages over what was known, which then includes this batch's rewards."""
        if batch.task_ids is None:
            raise ValueError("SPO's baselines are by prompt, and the batch lacks task_ids: use make_batch")
        for task in batch.task_ids:
            self.trackers.setdefault(task, BetaTracker.start())
        known = [self.trackers[task] for task in batch.task_ids]
        pairs = np.array([[tracker.alpha, tracker.beta] for tracker in known], np.float64).reshape(-1, 2)
        weighed = self.row.assign_advantages(replace(batch, trackers=pairs))
        for task, reward in zip(batch.task_ids, batch.rewards.tolist(), strict=True):
            moved = self.way - self.way_when_seen.get(task, self.way)
            self.trackers[task] = self.trackers[task].update(reward, moved)
            self.way_when_seen[task] = self.way
        return weighed

    def state(self) -> dict[str, Any]:
        trackers = {task: [tracker.alpha, tracker.beta] for task, tracker in self.trackers.items()}
        return {
            "row": self.row.state(),
            "trackers": trackers,
            "way": self.way,
            "way_when_seen": dict(self.way_when_seen),
        }

    def restored(self, state: Mapping[str, Any]) -> Self:
        return replace(
            self,
            row=self.row.restored(state["row"]),
            trackers={task: BetaTracker(*pair) for task, pair in state["trackers"].items()},
            way=state["way"],
            way_when_seen=dict(state["way_when_seen"]),
        )

    def after_step(self, metrics: Mapping[str, float]) -> Self:
        self.way += max(metrics.get("policy/approx_kl_k3", 0.0), 0.0)
        self.row = self.row.after_step(metrics)
        return self
