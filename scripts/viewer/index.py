"""Where each trajectory of trajectories.jsonl begins, and what it is filtered by; the tokens stay on disk."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import intern

import msgspec

from rollout.record import Record, decode_record
from scripts.viewer.followed import FollowedFile, Line, Problems


class UnknownLine(LookupError):
    """There is no trajectory on that line of the file."""


class _Task(msgspec.Struct):
    env: str
    level: int | None


class _Score(msgspec.Struct):
    value: float | None
    success: float | None
    error: str | None


class _Error(msgspec.Struct):
    kind: str


class _Metrics(msgspec.Struct):
    tool_errors: float = 0.0


class _Turn(msgspec.Struct):
    version_spans: list[tuple[int, int, int]]


class _Head(msgspec.Struct):
    """The fields of a record that the index keeps. Others are checked to be JSON and skipped."""

    step: int
    split: str
    group: int
    member: int
    task: _Task
    stop_reason: str
    score: _Score
    error: _Error | None
    metrics: _Metrics
    turns: list[_Turn]


_HEAD = msgspec.json.Decoder(_Head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trajectory in the index. `line` (from 1) is its address: nothing else is unique in a run.

    `error` is the kind of the world's error, or "unscored" where only the reward failed. `num_tokens` counts
    sampled tokens; `oldest` and `newest` are the policy versions that sampled them.
    """

    line: int
    offset: int
    step: int
    split: str
    group: int
    member: int
    env: str
    level: int | None
    stop_reason: str
    reward: float | None
    success: float | None
    error: str | None
    tool_errors: int
    num_turns: int
    num_tokens: int
    oldest: int | None
    newest: int | None


class TrajectoryIndex:
    """Row after row of a file that may still grow.

    `refresh` reads on; a line that is not a record becomes a problem with its number, and the rest still
    opens. About 300 bytes of memory a trajectory. Beside all `rows` it keeps those of each step and split,
    and which environments and stop reasons occur, so that nobody has to go through all of them for it.
    """

    def __init__(self, path: Path) -> None:
        self.generation = 0  # goes up when the file was replaced: rows and lines are others then
        self.file = FollowedFile(path)
        self._forget()

    def _forget(self) -> None:
        self.rows: list[Row] = []
        self.by_step: dict[tuple[int, str], list[Row]] = {}
        self.envs: set[str] = set()
        self.stop_reasons: set[str] = set()
        self.problems = Problems()

    def refresh(self, budget_s: float) -> bool:
        """Read on for `budget_s` seconds; whether that found anything."""
        is_void = self.file.look()
        if is_void:
            self._forget()
            self.generation += 1
        position = self.file.position
        for line in self.file.lines(budget_s):
            try:
                self._add(_row(line))
            except ValueError as error:
                self.problems.add(self.file.path, line.number, error)
        return is_void or self.file.position > position

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self.by_step.setdefault((row.step, row.split), []).append(row)
        self.envs.add(row.env)
        self.stop_reasons.add(row.stop_reason)

    def of_step(self, step: int) -> list[Row]:
        """The rows of a step in the order of the file, training and evaluation."""
        # A search does this in a thread while the index grows: list() takes a dict's items in one go.
        found = [rows for (its, _), rows in list(self.by_step.items()) if its == step]
        return found[0] if len(found) == 1 else sorted((r for rows in found for r in rows), key=line_of)

    def row(self, line: int) -> Row:
        """The row of a line of the file. Raises UnknownLine."""
        place = bisect_left(self.rows, line, key=line_of)
        if place == len(self.rows) or self.rows[place].line != line:
            raise UnknownLine(
                f"{self.file.path.name} has no readable trajectory on line {line} "
                f"({len(self.rows)} were found so far)"
            )
        return self.rows[place]

    def lines(self, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
        """Each row with what the file holds of it."""
        with self.file.path.open("rb") as file:
            for row in rows:
                file.seek(row.offset)
                yield row, file.readline()

    def records(self, rows: Iterable[Row]) -> Iterator[Record]:
        """The rows' records. Raises ValueError, with the line's number, for one that cannot be read."""
        for row, line in self.lines(rows):
            try:
                yield decode_record(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                where = f"{self.file.path.name}, line {row.line}"
                raise ValueError(f"{where}: no trajectory ({error!r}); it was changed or damaged") from error

    def holds(self, row: Row, name: str) -> bool:
        """Whether the row's line has a field `name`: an older version's has not all."""
        ((_, line),) = self.lines([row])
        return name in json.loads(line)


def line_of(row: Row) -> int:
    return row.line


def _row(line: Line) -> Row:
    try:
        head = _HEAD.decode(line.data)
    except msgspec.DecodeError:
        # NaN and half a surrogate pair are no JSON to msgspec; Python wrote them and reads them.
        head = msgspec.convert(json.loads(line.data), _Head)
    spans = [span for turn in head.turns for span in turn.version_spans]
    versions = [version for version, start, end in spans if end > start]
    unscored = "unscored" if head.score.value is None else None
    return Row(
        line=line.number,
        offset=line.offset,
        step=head.step,
        split=intern(head.split),
        group=head.group,
        member=head.member,
        env=intern(head.task.env),
        level=head.task.level,
        stop_reason=intern(head.stop_reason),
        reward=head.score.value,
        success=head.score.success,
        error=intern(head.error.kind) if head.error else unscored,
        tool_errors=int(head.metrics.tool_errors),
        num_turns=len(head.turns),
        num_tokens=sum(end - start for _, start, end in spans),
        oldest=min(versions, default=None),
        newest=max(versions, default=None),
    )
