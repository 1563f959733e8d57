"""How far an episode may go, and which limit ended it."""

from __future__ import annotations

from dataclasses import dataclass

from envs.messages import Message, StopReason
from envs.policy import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one episode; each has the StopReason of its name.

    Where several are reached, the first of this order is the reason:
        any time            MAX_WALL_S, in seconds from reset on, waits for the tools and the policy included
        before a turn       MAX_TURNS; then, with no room for one more token, MAX_TOTAL_TOKENS, CONTEXT_LIMIT
        after a completion  when it was cut, the smallest of MAX_TURN_TOKENS, MAX_TOTAL_TOKENS, CONTEXT_LIMIT;
                            MAX_TOOL_CALLS, when the message's calls would exceed it: none of them is executed
        after a step        ANSWERED

    `max_turn_tokens` counts one completion; `max_total_tokens` the whole trajectory, prompt and tool replies
    included; `max_tool_calls` every attempted call, well-formed or not.
    """

    max_turns: int = 8
    max_turn_tokens: int = 256
    max_total_tokens: int = 4096
    max_tool_calls: int = 16
    max_wall_s: float = 120.0

    def __post_init__(self) -> None:
        least = {"max_turns": 1, "max_turn_tokens": 1, "max_total_tokens": 1, "max_tool_calls": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"Limits.{name} is {getattr(self, name)}; expected at least {bound}")
        if not self.max_wall_s > 0:
            raise ValueError(f"Limits.max_wall_s is {self.max_wall_s}; expected more than 0 seconds")


@dataclass(slots=True, kw_only=True)
class Budget:
    """What one episode has used of its limits and of the model's context."""

    limits: Limits
    context_length: int
    num_turns: int = 0
    num_tool_calls: int = 0
    max_tokens: int = 0  # of the turn that is open
    _cut_reason: StopReason = StopReason.MAX_TURN_TOKENS

    def open_turn(self, prompt_length: int) -> StopReason | None:
        """Set `max_tokens` for a prompt of this length. Why none may be asked for; None when one may."""
        if self.num_turns == self.limits.max_turns:
            return StopReason.MAX_TURNS
        self.num_turns += 1
        self.max_tokens, self._cut_reason = min(
            (self.limits.max_turn_tokens, StopReason.MAX_TURN_TOKENS),
            (self.limits.max_total_tokens - prompt_length, StopReason.MAX_TOTAL_TOKENS),
            (self.context_length - prompt_length, StopReason.CONTEXT_LIMIT),
            key=lambda limit: limit[0],
        )
        return self._cut_reason if self.max_tokens < 1 else None

    def close_turn(self, completion: Completion, action: Message) -> StopReason | None:
        """Count the calls of what the policy said. Why none of it may be executed; None when it may."""
        if completion.finish_reason == "length":
            return self._cut_reason
        self.num_tool_calls += len(action.tool_calls)
        return StopReason.MAX_TOOL_CALLS if self.num_tool_calls > self.limits.max_tool_calls else None
