"""Episodes and scores as JSON values and back: for records, and for rewards in other processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.episode import Episode, Score
from envs.messages import Message, ParseStatus, StopReason, Task, TextPart, ToolCall

Json = dict[str, Any]


def encode_episode(episode: Episode) -> Json:
    """An episode as JSON values; task metadata, final state and tool arguments must be such already."""
    return {
        "task": _encode_task(episode.task),
        "stop_reason": episode.stop_reason.value,
        "transcript": [_encode_message(message) for message in episode.transcript],
        "final_state": dict(episode.final_state),
        "metrics": dict(episode.metrics),
    }


def decode_episode(row: Mapping[str, Any]) -> Episode:
    """The inverse of `encode_episode`; other fields of `row` are left alone."""
    return Episode(
        task=_decode_task(row["task"]),
        transcript=tuple(_decode_message(message) for message in row["transcript"]),
        stop_reason=StopReason(row["stop_reason"]),
        final_state=row["final_state"],
        metrics=row["metrics"],
    )


def encode_score(score: Score) -> Json:
    """A score as JSON values; `Score(**row)` is the inverse."""
    return {
        "value": score.value,
        "parts": dict(score.parts),
        "success": score.success,
        "error": score.error,
        "explanation": score.explanation,
        "error_kind": score.error_kind,
    }


def _encode_task(task: Task) -> Json:
    return {
        "id": task.id,
        "env": task.env,
        "level": task.level,
        "seed": task.seed,
        "answer": task.answer,
        "metadata": dict(task.metadata),
        "messages": [_encode_message(message) for message in task.messages],
    }


def _decode_task(row: Json) -> Task:
    return Task(**{**row, "messages": tuple(_decode_message(message) for message in row["messages"])})


def _encode_message(message: Message) -> Json:
    return {
        "role": message.role,
        "content": [{"type": "text", "text": part.text} for part in message.content],
        "tool_calls": [_encode_call(call) for call in message.tool_calls],
        "tool_call_id": message.tool_call_id,
        "is_error": message.is_error,
    }


def _decode_message(row: Json) -> Message:
    return Message(
        role=row["role"],
        content=tuple(_decode_part(part) for part in row["content"]),
        tool_calls=tuple(_decode_call(call) for call in row["tool_calls"]),
        tool_call_id=row["tool_call_id"],
        is_error=row["is_error"],
    )


def _decode_part(row: Mapping[str, Any]) -> TextPart:
    if row["type"] != "text":
        raise ValueError(
            f"message part of type {row['type']!r}: expected 'text'; a newer version wrote this record"
        )
    return TextPart(row["text"])


def _encode_call(call: ToolCall) -> Json:
    return {
        "id": call.id,
        "name": call.name,
        "arguments": dict(call.arguments),
        "status": call.status.value,
        "text": call.text,
        "problem": call.problem,
    }


def _decode_call(row: Json) -> ToolCall:
    return ToolCall(**{**row, "status": ParseStatus(row["status"])})
