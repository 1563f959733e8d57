"""Episode and Score: what a reward sees and what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Literal

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

    @property
    def said(self) -> str:
        """What the policy said, a line a turn: its text, its calls in brackets as made; no tool's reply."""
        spoken = (m for m in self.transcript if m.role == "assistant")
        return "\n".join(m.text + "".join(f"[{call.text}]" for call in m.tool_calls) for m in spoken)


ErrorKind = Literal["", "exception", "timeout", "crashed", "invalid", "judge", "world"]
"""Why an episode is unscored: the reward raised, hung, took its process with it, or returned no score; its
judge gave none; the world that grading needs failed. "" for a scored one, and where nothing went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What an episode is worth. `value` None means *unscored*: the reward could not be computed.

    An unscored episode is in no statistic and in no loss: a world that failed is not the model's zero.
    `parts` are the named components (logged each), `success` the task metric in {0, 1} where one exists.
    `error` says why an episode is unscored and `error_kind` which kind of reason that is; `explanation` is
    what a reader of the record is told besides numbers.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    success: float | None = None
    error: str | None = None
    explanation: str = ""
    error_kind: ErrorKind = ""


RewardFn = Callable[[Episode], Score | Awaitable[Score]]
"""A reward of one episode; `async def` or not."""

GroupRewardFn = Callable[[Sequence[Episode]], Sequence[Score] | Awaitable[Sequence[Score]]]
"""A reward that compares the members of a group: as many scores as episodes, in their order."""


async def score_of(function: RewardFn, episode: Episode) -> Score:
    """What `function` says of `episode`, asynchronous or not."""
    score = function(episode)
    return await score if isawaitable(score) else score
