"""Episode and Score: what a reward sees and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envs.messages import Message, StopReason, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One finished interaction, as text.

    `transcript` holds every message in order, the task's own first. `final_state` is what the environment
    exposes for grading just before it is closed. `metrics` are the sums of the steps' metrics.
    """

    task: Task
    transcript: tuple[Message, ...]
    stop_reason: StopReason
    final_state: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The text of the last assistant message, stripped; empty when the policy never spoke."""
        spoken = (m.text for m in reversed(self.transcript) if m.role == "assistant")
        return next(spoken, "").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What an episode is worth. `value` None means *unscored*: the reward could not be computed.

    An unscored episode is in no statistic and in no loss: a world that failed is not the model's zero.
    `parts` are the named components (logged each), `success` the task metric in {0, 1} where one exists.
    `explanation` is what a judge said; `error_kind` tells what kind of failure left it unscored.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    success: float | None = None
    error: str | None = None
    explanation: str = ""
    error_kind: str = ""


RewardFn = Callable[[Episode], Score]
