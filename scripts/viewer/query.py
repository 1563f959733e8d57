"""Which trajectories: by step, split, environment, reward, stop reason, error and text."""

from __future__ import annotations

import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from itertools import islice
from operator import attrgetter
from typing import Any, get_args, get_type_hints

from envs.names import unknown_name
from scripts.viewer.index import Row, TrajectoryIndex, line_of

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

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that the index alone lets through, in order; `text` is not in the index."""
        return reduce(lambda left, condition: filter(condition, left), self._conditions(), iter(rows))

    def _conditions(self) -> Iterator[Callable[[Row], bool]]:
        # One small function for each filter that is set: a hundred thousand rows go through in milliseconds.
        for name in ("step", "split", "group", "env", "stop_reason"):
            if (wanted := getattr(self, name)) is not None:
                yield _equals(name, wanted)
        if self.error is not None:
            yield _HAS_ERROR[self.error]
        if (low := self.min_reward) is not None:
            yield lambda row: row.reward is not None and row.reward >= low
        if (high := self.max_reward) is not None:
            yield lambda row: row.reward is not None and row.reward <= high


def _equals(name: str, wanted: object) -> Callable[[Row], bool]:
    value_of = attrgetter(name)
    return lambda row: value_of(row) == wanted


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
    """Some of the rows that pass; `next_row` is the line where to go on, None at the end of the index."""

    rows: list[Row]
    next_row: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The rows before and after a line that pass; None where there is none, or none has been found yet.

    `earlier` and `later` are the lines where to go on looking, None where that is done. `number` counts the
    line itself among the rows that pass, from 1; None where it does not pass, or where text is looked for.
    """

    previous: Row | None
    next: Row | None
    earlier: int | None
    later: int | None
    number: int | None


def search(
    index: TrajectoryIndex, filters: Filters, *, start: int = 0, limit: int = 200, budget_s: float = 1.0
) -> Page:
    """The next rows from line `start` of the file on, at most `limit`, for at most about `budget_s`."""
    rows = _rows(index, filters)
    return _scan(index, filters, rows[bisect_left(rows, start, key=line_of) :], limit, budget_s)


def beside(
    index: TrajectoryIndex,
    filters: Filters,
    line: int,
    *,
    earlier: int | None = None,
    later: int | None = None,
    budget_s: float = 1.0,
) -> Neighbours:
    """What comes before and after `line`, for at most about `budget_s`.

    Where a look before was not enough, `earlier` and `later` are what it said.
    """
    rows = _rows(index, filters)
    place, end = (side(rows, line, key=line_of) for side in (bisect_left, bisect_right))
    first = end if later is None else bisect_left(rows, later, lo=end, key=line_of)
    last = place if earlier is None else bisect_right(rows, earlier, hi=place, key=line_of)
    back = _scan(index, filters, rows[:last][::-1], 1, budget_s / 2)
    ahead = _scan(index, filters, rows[first:], 1, budget_s / 2)
    is_counted = filters.text is None and any(filters.passing(rows[place:end]))
    return Neighbours(
        previous=back.rows[0] if back.rows else None,
        next=ahead.rows[0] if ahead.rows else None,
        earlier=None if back.rows else back.next_row,
        later=None if ahead.rows else ahead.next_row,
        number=sum(1 for _ in filters.passing(rows[:end])) if is_counted else None,
    )


def _rows(index: TrajectoryIndex, filters: Filters) -> list[Row]:
    return index.rows if filters.step is None else index.of_step(filters.step)


def _scan(index: TrajectoryIndex, filters: Filters, rows: list[Row], limit: int, budget_s: float) -> Page:
    """The first `limit` of `rows` that pass; at least one is looked at, whatever the budget."""
    passing = filters.passing(rows)
    if filters.text is None:
        found = list(islice(passing, limit))
        return Page(rows=found, next_row=next(map(line_of, passing), None))
    needle, found, ends = filters.text.casefold(), [], time.monotonic() + budget_s
    is_over = False
    for row, line in index.lines(passing) if rows else ():
        if is_over:
            return Page(rows=found, next_row=row.line)
        if _says(line, needle):
            found.append(row)
        is_over = len(found) == limit or time.monotonic() > ends
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
