"""Which trajectories: by step, split, environment, reward, stop reason, error and text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from envs.names import unknown_name
from scripts.viewer.index import Row, TrajectoryIndex

ERRORS = ("none", "tool", "world")
"""What the error filter knows: no error, a tool that reported one, a world or reward that failed."""


class FilterError(ValueError):
    """A filter that does not exist or a value that it does not take; the message names what it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """All must hold. None: any. `text` is looked for in messages, tool calls included, letter case aside."""

    step: int | None = None
    split: str | None = None
    group: int | None = None
    env: str | None = None
    stop_reason: str | None = None
    error: str | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None and self.error not in ERRORS:
            raise FilterError(unknown_name("error filter", self.error, ERRORS))

    def admits(self, row: Row) -> bool:
        """Whether the index alone lets the row through; `text` is not in the index."""
        return (
            all(
                wanted is None or wanted == getattr(row, name)
                for name, wanted in (
                    ("step", self.step),
                    ("split", self.split),
                    ("group", self.group),
                    ("env", self.env),
                    ("stop_reason", self.stop_reason),
                )
            )
            and (self.error is None or _HAS_ERROR[self.error](row))
            and (self.min_reward is None or (row.reward is not None and row.reward >= self.min_reward))
            and (self.max_reward is None or (row.reward is not None and row.reward <= self.max_reward))
        )


_HAS_ERROR: dict[str, Callable[[Row], bool]] = {
    "none": lambda row: row.error is None and not row.tool_errors,
    "tool": lambda row: row.tool_errors > 0,
    "world": lambda row: row.error is not None,
}


def parse_filters(given: Mapping[str, str]) -> Filters:
    """Filters from text; an empty value is no filter. Raises FilterError."""
    hints = get_type_hints(Filters)
    parsed: dict[str, Any] = {}
    for name, value in given.items():
        if name not in hints:
            raise FilterError(unknown_name("filter", name, [field.name for field in fields(Filters)]))
        kind = get_args(hints[name])[0]
        if value == "":
            continue
        try:
            parsed[name] = kind(value)
        except ValueError:
            raise FilterError(f"filter {name} = {value!r}: expected {kind.__name__}") from None
    return Filters(**parsed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some of the rows that pass; `next_row` is where to go on, None at the end of what is indexed."""

    rows: list[Row]
    next_row: int | None


def search(
    index: TrajectoryIndex, filters: Filters, *, start: int = 0, limit: int = 200, budget_s: float = 1.0
) -> Page:
    """The next rows from place `start` of the index on, at most `limit`, for at most about `budget_s`."""
    ends = time.monotonic() + budget_s
    found: list[Row] = []
    needle = None if filters.text is None else filters.text.casefold()
    for place in range(start, len(index.rows)):
        row = index.rows[place]
        if len(found) == limit or (place % 64 == 63 and time.monotonic() > ends):
            return Page(rows=found, next_row=place)
        if filters.admits(row) and (needle is None or _says(next(index.lines([row])), needle)):
            found.append(row)
    return Page(rows=found, next_row=None)


def _says(line: bytes, needle: str) -> bool:
    # Text that is plain ASCII stands in the line as itself: most lines are done with without parsing them.
    if needle.isalnum() and needle.isascii() and needle.encode() not in line.lower():
        return False
    transcript = json.loads(line)["transcript"]
    return any(needle in text.casefold() for message in transcript for text in _texts(message))


def _texts(message: dict[str, Any]) -> list[str]:
    return [
        *(part.get("text", "") for part in message["content"]),
        *(call["text"] for call in message["tool_calls"]),
    ]
