"""Tools: a typed Python function becomes a ToolSpec; calls are parsed from text and dispatched.

The text action format is small enough for a character tokenizer to learn:

    [calc 12+34]                one call: tool name, then the arguments in the order of the signature
    [move 3 left]               several parameters: shell words, each converted to its type
    [say it's "raw" [text]]     a single str parameter takes the rest of the text as it stands
    46                          no bracket: no call, so a final answer

Brackets inside a call must be balanced. Text outside the brackets stays in the message's content.
"""

from __future__ import annotations

import inspect
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_type_hints, overload

from envs.deadline import DeadlineError, in_thread, within
from envs.messages import Message, ParseStatus, StepResult, TextPart, ToolCall, ToolSpec, message
from envs.names import nearest

MAX_OUTPUT_CHARS = 4000
_MAX_QUOTED_CHARS = 20  # of the policy's own text in an error: the observation stays short
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


class ToolError(Exception):
    """The policy used the tool wrongly, or the tool refuses: its text is the policy's observation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A callable tool. As a class attribute it binds to the instance like a method."""

    spec: ToolSpec
    function: Callable[..., Any]
    timeout_s: float | None = None

    def __get__(self, instance: object | None, owner: type | None = None) -> Tool:
        if instance is None:
            return self
        return replace(self, function=self.function.__get__(instance, owner))  # type: ignore[attr-defined]

    async def __call__(self, **arguments: Any) -> str:
        """Run the tool. DeadlineError after `timeout_s` wall seconds; an overdue sync tool is abandoned."""
        if inspect.iscoroutinefunction(self.function):
            output = await within(self.timeout_s, self.function(**arguments))
        elif self.timeout_s is None:
            output = self.function(**arguments)
        else:
            output = await within(self.timeout_s, in_thread(partial(self.function, **arguments)))
        if not isinstance(output, str):
            raise TypeError(f"tool {self.spec.name} returned {type(output).__name__}; a tool returns str")
        return output


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(*, timeout_s: float | None = None) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, /, *, timeout_s: float | None = None
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a typed function or method, sync or async, a Tool; its docstring's first paragraph describes it.

    Parameters are str, int, float or bool; trailing ones may have defaults. With `timeout_s` a sync function
    runs in a thread, so it must then not share unlocked state with anything else that runs meanwhile.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"tool timeout_s is {timeout_s}; expected seconds > 0, or None for no deadline")

    def decorate(function: Callable[..., Any]) -> Tool:
        return Tool(spec=_spec_of(function), function=function, timeout_s=timeout_s)

    return decorate if function is None else decorate(function)


def _spec_of(function: Callable[..., Any]) -> ToolSpec:
    name = function.__name__
    description = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
    if not description:
        raise TypeError(f"tool {name} has no docstring; its first paragraph is what the policy is told")
    hints = get_type_hints(function)
    if hints.get("return") is not str:
        raise TypeError(f"tool {name} must be annotated '-> str', the text that the policy reads")
    properties: dict[str, dict[str, Any]] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        json_type = _JSON_TYPES.get(hints.get(parameter.name, object))
        if json_type is None or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(
                f"tool {name}: parameter {str(parameter)!r} must be positional, a str, int, float or bool"
            )
        properties[parameter.name] = {"type": json_type}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            properties[parameter.name]["default"] = parameter.default
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ToolSpec(name=name, description=description, parameters=schema)


def describe_tools(specs: Sequence[ToolSpec]) -> str:
    """The tools' instructions as a system text, for models that read instructions."""
    signatures = {spec.name: " ".join([spec.name, *spec.parameters["properties"]]) for spec in specs}
    return "\n".join(
        [
            "To call a tool, write its name and its arguments in square brackets. Quote an argument that "
            "holds spaces when the tool takes more than one. Text without a bracket is your final answer.",
            *(f"[{signatures[spec.name]}]: {spec.description}" for spec in specs),
        ]
    )


def assistant_message(text: str, specs: Sequence[ToolSpec], *, first_id: int = 0) -> Message:
    """What the policy wrote as a Message: its calls parsed, the text outside of them as its content."""
    spans = _call_spans(text)
    edges = [0, *(edge for start, end, _ in spans for edge in (start, end)), len(text)]
    outside = "".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    content = (TextPart(outside),) if outside else ()
    return Message(role="assistant", content=content, tool_calls=parse_calls(text, specs, first_id=first_id))


def parse_calls(text: str, specs: Sequence[ToolSpec], *, first_id: int = 0) -> tuple[ToolCall, ...]:
    """Every call attempted in `text`, in order, with ids call_<first_id>, call_<first_id + 1>, ...

    Only a call of status OK has arguments and may run; the others say in `problem` what is wrong.
    """
    by_name = {spec.name: spec for spec in specs}
    return tuple(
        _parse_call(f"call_{first_id + position}", text[start + 1 : end - closed], closed, by_name)
        for position, (start, end, closed) in enumerate(_call_spans(text))
    )


def _call_spans(text: str) -> list[tuple[int, int, bool]]:
    """(start, end, closed) of each outermost bracket pair; an unclosed one reaches to the end of the text."""
    spans: list[tuple[int, int, bool]] = []
    depth = start = 0
    for position, character in enumerate(text):
        if character == "[":
            start = position if depth == 0 else start
            depth += 1
        elif character == "]" and depth > 0:
            depth -= 1
            if depth == 0:
                spans.append((start, position + 1, True))
    return [*spans, (start, len(text), False)] if depth else spans


def _parse_call(call_id: str, text: str, closed: bool, specs: Mapping[str, ToolSpec]) -> ToolCall:
    words = text.split(maxsplit=1)
    name = words[0] if words else ""
    call = ToolCall(id=call_id, name=name, text=text)
    if not closed:
        return replace(call, status=ParseStatus.UNCLOSED, problem="call not closed, ] is missing")
    if not name:
        return replace(call, status=ParseStatus.MALFORMED, problem="empty call")
    if name not in specs:
        guess = nearest(name, specs)
        hint = f"did you mean {guess}" if guess else f"tools: {' '.join(specs)}"
        problem = f"unknown tool {name[:_MAX_QUOTED_CHARS]}, {hint}"
        return replace(call, status=ParseStatus.UNKNOWN_TOOL, problem=problem)
    raw = text.lstrip()[len(name) + 1 :]  # past the name and the one white space after it
    try:
        return replace(call, arguments=_parse_arguments(raw, specs[name].parameters))
    except ValueError as error:
        return replace(call, status=ParseStatus.MALFORMED, problem=f"{name}: {error}")


def _parse_arguments(raw: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Typed arguments by name; ValueError says which one does not fit."""
    properties: Mapping[str, Mapping[str, Any]] = schema["properties"]
    if [parameter["type"] for parameter in properties.values()] == ["string"]:
        words = [raw] if raw.strip() else []
    else:
        words = shlex.split(raw)
    missing = list(properties)[len(words) :]
    if needed := [name for name in missing if name in schema["required"]]:
        raise ValueError(f"missing {' '.join(needed)}")
    if len(words) > len(properties):
        raise ValueError(f"takes {len(properties)} arguments, got {len(words)}")
    given = zip(properties.items(), words, strict=False)  # trailing defaults may be left out
    return {name: _convert(name, parameter["type"], word) for (name, parameter), word in given}


def _convert(name: str, json_type: str, word: str) -> str | int | float | bool:
    try:
        match json_type:
            case "string":
                return word
            case "integer":
                return int(word)
            case "number" if math.isfinite(number := float(word)):
                return number
            case "boolean":
                return {"true": True, "false": False}[word.lower()]
    except (ValueError, KeyError):
        pass
    raise ValueError(f"{name} must be {json_type}, got {word[:_MAX_QUOTED_CHARS]}")


async def dispatch(
    calls: Sequence[ToolCall], tools: Mapping[str, Tool], *, max_output_chars: int = MAX_OUTPUT_CHARS
) -> StepResult:
    """Run the calls one after another: one tool message each, in their order.

    One at a time because the tools of an episode share its state and its random stream: their order is part
    of the result. A ToolError, an overdue tool and a call that did not parse are observations for the policy
    (`is_error`); a WorldError and every other exception propagate.
    """
    replies: list[Message] = []
    overdue: set[str] = set()
    call_s: dict[str, float] = {}
    for call in calls:
        started = time.perf_counter()
        replies.append(await _reply(call, tools, max_output_chars, overdue))
        if call.status is ParseStatus.OK:  # another one did not run, and took no time of a tool
            call_s[call.id] = time.perf_counter() - started
    metrics = _call_metrics(calls, replies) | {"tool_timeouts": float(len(overdue))}
    return StepResult(messages=tuple(replies), metrics=metrics, call_s=call_s)


async def _reply(
    call: ToolCall, tools: Mapping[str, Tool], max_output_chars: int, overdue: set[str]
) -> Message:
    """The tool message that answers `call`; the id of one that ran out of its time joins `overdue`."""
    problem = call.problem
    if call.status is ParseStatus.OK:
        if call.name not in tools:
            raise ValueError(f"{call.id} was parsed for tool {call.name!r}, which is not among {list(tools)}")
        try:
            output = _truncated(await tools[call.name](**call.arguments), max_output_chars)
            return message("tool", output, tool_call_id=call.id)
        except ToolError as error:
            problem = str(error)
        except DeadlineError as error:
            problem = str(error)
            overdue.add(call.id)
    output = _truncated(f"error: {problem}", max_output_chars)
    return message("tool", output, tool_call_id=call.id, is_error=True)


def _truncated(text: str, max_chars: int) -> str:
    """`text`, or its first `max_chars` characters and how many were cut."""
    num_cut = len(text) - max_chars
    return text if num_cut <= 0 else f"{text[:max_chars]}... ({num_cut} characters cut)"


def _call_metrics(calls: Sequence[ToolCall], replies: Sequence[Message]) -> dict[str, float]:
    """Attempts, error replies, attempts by parse status. Zeros too, so that a mean is over all episodes."""
    statuses = [call.status for call in calls]
    return {
        "tool_calls": float(len(calls)),
        "tool_errors": float(sum(reply.is_error for reply in replies)),
        **{f"parse/{status}": float(statuses.count(status)) for status in ParseStatus},
    }
