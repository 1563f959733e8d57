"""Messages, tool calls, tasks and step results: the text side of an episode. Tokens live in `rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


class StopReason(StrEnum):
    """Why an episode ended. Exactly one per trajectory."""

    ANSWERED = "answered"  # the environment said that it is done
    MAX_TURNS = "max_turns"
    MAX_TURN_TOKENS = "max_turn_tokens"  # a completion was cut at its token limit
    MAX_TOTAL_TOKENS = "max_total_tokens"
    MAX_TOOL_CALLS = "max_tool_calls"
    MAX_WALL_S = "max_wall_s"
    CONTEXT_LIMIT = "context_limit"  # the next prompt would not fit the model's context
    ERROR = "error"  # the world failed; Trajectory.error says how


class ParseStatus(StrEnum):
    """What parsing one attempted tool call gave."""

    OK = "ok"
    MALFORMED = "malformed"  # closed, but its arguments do not fit the tool's signature
    UNKNOWN_TOOL = "unknown_tool"
    UNCLOSED = "unclosed"  # opened and never closed: it is not executed


@dataclass(frozen=True, slots=True)
class TextPart:
    """One piece of text. Content is a list of typed parts so that images can join later."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One attempted call, well-formed or not.

    `text` is what the policy wrote between the brackets; `arguments` is empty unless `status` is OK;
    `problem` is what to tell the policy when it is not.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    status: ParseStatus = ParseStatus.OK
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a transcript. A tool message answers the call whose id is `tool_call_id`."""

    role: Role
    content: tuple[TextPart, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    is_error: bool = False

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


def message(role: Role, text: str, **fields: Any) -> Message:
    """A message of one text part."""
    return Message(role=role, content=(TextPart(text),), **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What the policy is told of a tool: `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. A pure function of (env, level, seed), or a row of a data set (then level and seed are
    None).

    `env` names the environment by string (`calc`, `my_env.py:MyEnv`, `package.module:attr`). All members of a
    group start from the same Task.
    """

    id: str
    env: str
    messages: tuple[Message, ...]
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    level: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What the environment answers to one assistant message.

    `messages` are appended to the transcript (tool results, in the order of the calls, or a user's reply);
    `done` ends the episode; `reward` is a shaping reward of this turn (most environments leave it 0 and are
    scored on the whole episode); `metrics` are summed over the episode. `call_s` are the wall seconds that
    each tool call took, by its id.
    """

    messages: tuple[Message, ...] = ()
    done: bool = False
    reward: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    call_s: Mapping[str, float] = field(default_factory=dict)
