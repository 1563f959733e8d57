"""Trajectories as JSON lines, lossless: what was sampled, what the tools said, how it was scored."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.episode import Score
from envs.episode_json import decode_episode, encode_episode, encode_score
from rollout.jsonl import JsonlWriter, encode_line, read_jsonl
from rollout.trajectory import (
    Completion,
    FailedAttempt,
    Trajectory,
    TrajectoryError,
    Turn,
    VersionSpan,
)

logger = logging.getLogger(__name__)

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line: a trajectory and where in the run it came from.

    `group` is the task's index in the task stream, `member` the place in the group. `old_logprobs` holds the
    learner's log-probabilities before the update (nats), one tuple a turn and one number a sampled id; None
    where the learner has not scored the trajectory. `advantages` are those that it was trained with, of the
    same shape; None where it was not trained on, or on something that has none (pairs, demonstrations), and
    in a record that is older than them. The loss mask is not stored: it is 0 on every id of
    `context_ids` and 1 on every sampled id of a scored trajectory. A mixture's routed experts are not stored
    either: they are layers x top_k numbers a token, hundreds of times the rest.
    """

    step: int
    split: str  # "train" or "eval"
    group: int
    member: int
    trajectory: Trajectory
    old_logprobs: tuple[tuple[float, ...], ...] | None = None
    advantages: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        expected = [len(turn.completion.token_ids) for turn in self.trajectory.turns]
        for name, turns in (("old_logprobs", self.old_logprobs), ("advantages", self.advantages)):
            if turns is not None and (given := [len(turn) for turn in turns]) != expected:
                raise ValueError(
                    f"trajectory {self.trajectory.id}: {name} has {given} numbers a turn; expected one a "
                    f"sampled id, {expected}"
                )


class TrajectoryRecorder:
    """Appends records to one file until it would pass `max_bytes`; then says so once and writes no more.

    `write` makes all its records durable together (one fsync): call it once a step.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._writer = JsonlWriter(path)
        self.max_bytes = max_bytes
        self.is_full = False

    def write(self, records: Iterable[Record]) -> int:
        """Append records, in order; returns how many were written (fewer than given: the file is full)."""
        if self.is_full:
            return 0
        lines: list[bytes] = []
        size = self._writer.num_bytes
        for record in records:
            line = _encode_record_line(record)
            size += len(line)
            if size > self.max_bytes:
                self.is_full = True
                logger.warning(
                    "%s: the next trajectory (step %d) would pass max_bytes = %d; nothing more is recorded",
                    self._writer.path,
                    record.step,
                    self.max_bytes,
                )
                break
            lines.append(line)
        self._writer.append_lines(lines)
        return len(lines)

    def close(self) -> None:
        self._writer.close()


def read_records(path: Path) -> Iterator[Record]:
    """Every finished record of a file, lazily and in order."""
    return (decode_record(row) for row in read_jsonl(path))


def _encode_record_line(record: Record) -> bytes:
    try:
        return encode_line(encode_record(record))
    except (TypeError, ValueError) as error:
        error.add_note(
            f"trajectory {record.trajectory.id}: task metadata, final_state and tool arguments must be JSON"
        )
        raise


def encode_record(record: Record) -> Json:
    """A record as JSON values. Task metadata, final state and tool arguments must be JSON values already."""
    trajectory = record.trajectory
    old_logprobs, advantages = record.old_logprobs, record.advantages
    return {
        "step": record.step,
        "split": record.split,
        "group": record.group,
        "member": record.member,
        "id": trajectory.id,
        **encode_episode(trajectory.episode),
        "score": encode_score(trajectory.score),
        "error": trajectory.error and asdict(trajectory.error),
        "attempts": [asdict(attempt) for attempt in trajectory.attempts],
        "close_error": trajectory.close_error and asdict(trajectory.close_error),
        "timings_s": trajectory.timings_s,
        "call_s": trajectory.call_s,
        "turns": [_encode_turn(turn) for turn in trajectory.turns],
        "old_logprobs": None if old_logprobs is None else [_floats(turn) for turn in old_logprobs],
        "advantages": None if advantages is None else [_shared(turn) for turn in advantages],
    }


def decode_record(row: Json) -> Record:
    """The inverse of `encode_record`."""
    trajectory = Trajectory(
        id=row["id"],
        episode=decode_episode(row),
        turns=tuple(_decode_turn(turn) for turn in row["turns"]),
        score=Score(**row["score"]),  # an older record lacks some, which have defaults
        error=row["error"] and TrajectoryError(**row["error"]),
        timings_s=row["timings_s"],
        # An older record has none of these.
        call_s=row.get("call_s", {}),
        attempts=tuple(
            FailedAttempt(**{**attempt, "error": TrajectoryError(**attempt["error"])})
            for attempt in row.get("attempts", ())
        ),
        close_error=TrajectoryError(**told) if (told := row.get("close_error")) else None,
    )
    old_logprobs, advantages = row["old_logprobs"], row.get("advantages")  # an older record has none
    return Record(
        step=row["step"],
        split=row["split"],
        group=row["group"],
        member=row["member"],
        trajectory=trajectory,
        old_logprobs=None if old_logprobs is None else tuple(tuple(turn) for turn in old_logprobs),
        advantages=None
        if advantages is None
        else tuple(
            tuple(told) if isinstance(told, list) else (told,) * len(turn.completion.token_ids)
            for told, turn in zip(advantages, trajectory.turns, strict=True)
        ),
    )


def _encode_turn(turn: Turn) -> Json:
    completion = turn.completion
    return {
        "parent": turn.parent,
        "context_ids": _integers(turn.context_ids),
        "token_ids": _integers(completion.token_ids),
        "rollout_logprobs": _floats(completion.logprobs),
        "version_spans": [[span.version, span.start, span.end] for span in completion.version_spans],
        "finish_reason": completion.finish_reason,
        "kept_ids": completion.kept_ids and [_integers(kept) for kept in completion.kept_ids],
        "reward": float(turn.reward),
    }


def _decode_turn(row: Json) -> Turn:
    kept_ids = row.get("kept_ids")  # an older record has none
    completion = Completion(
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["rollout_logprobs"]),
        version_spans=tuple(
            VersionSpan(version=v, start=start, end=end) for v, start, end in row["version_spans"]
        ),
        finish_reason=row["finish_reason"],
        kept_ids=None if kept_ids is None else tuple(tuple(kept) for kept in kept_ids),
    )
    return Turn(
        parent=row["parent"],
        context_ids=tuple(row["context_ids"]),
        completion=completion,
        reward=row.get("reward", 0.0),  # an older record has none
    )


def _floats(logprobs: Sequence[float]) -> list[float]:
    # Lossless for float32 too: it is a float64 exactly, and JSON writes a float64 in its round-tripping form.
    return [float(logprob) for logprob in logprobs]


def _shared(numbers: Sequence[float]) -> float | list[float]:
    """A turn's numbers, or the one number that all its tokens share: most estimators give such."""
    listed = _floats(numbers)
    # By its text, in which NaN equals NaN and -0.0 is not 0.0.
    return listed[0] if len({*map(repr, listed)}) == 1 else listed


def _integers(ids: Sequence[int]) -> list[int]:
    return [int(token_id) for token_id in ids]
