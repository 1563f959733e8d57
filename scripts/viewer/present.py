"""Runs, rows and trajectories as JSON values for the page. Text is made printable here, once for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from envs.messages import Message, Task
from rl.intervals import wilson_interval
from rl.token_colors import printable
from rollout.record import Record
from rollout.trajectory import Turn
from scripts.viewer.index import Row
from scripts.viewer.run import ViewedRun
from scripts.viewer.tokens import TokenTexts

Json = dict[str, Any]

MAX_TASK_CHARACTERS = 160


def run_summary(run: ViewedRun) -> Json:
    """What a run is and how much of it has been read."""
    return {
        "name": printable(run.name),
        "path": printable(str(run.path)),
        "live": run.is_live,
        "config": plain(run.config),
        "manifest": plain(run.manifest),
        "num_metrics": len(run.metrics),
        "metrics_generation": run.metrics_generation,
        "num_rows": len(run.index.rows),
        "generation": run.index.generation,
        "bytes_read": run.index.file.position,
        "bytes": run.index.file.size,
        "problems": [printable(text) for text in run.problem_texts],
        "note": printable(run.texts.note),
        "envs": sorted(run.index.envs),
        "stop_reasons": sorted(run.index.stop_reasons),
    }


def steps(rows: Sequence[Row]) -> list[Json]:
    """One entry a step and split, in the order of the file: how many trajectories, their mean reward."""
    by_step: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_step[row.step, row.split].append(row)
    return [step_json(step, split, members) for (step, split), members in by_step.items()]


def step_json(step: int, split: str, rows: Sequence[Row]) -> Json:
    """A step's `rows` of a split, summed up."""
    return {
        "step": step,
        "split": split,
        "trajectories": len(rows),
        "groups": len({row.group for row in rows}),
        "unscored": sum(row.reward is None for row in rows),
        "reward": plain(_mean([row.reward for row in rows if row.reward is not None])),
        "success": plain(_mean([row.success for row in rows if row.success is not None])),
        "interval": _interval(rows),
    }


def row_json(row: Row) -> Json:
    """One row of the index."""
    names = (name for name in Row.__slots__ if name != "offset")
    return {name: plain(getattr(row, name)) for name in names}


def group_json(rows: Sequence[Row], task: Task) -> Json:
    """A group with the beginning of what its members were asked."""
    asked = " ".join(message.text for message in task.messages)
    return {
        "group": rows[0].group,
        "step": rows[0].step,
        "split": rows[0].split,
        "task": printable(asked if len(asked) <= MAX_TASK_CHARACTERS else asked[:MAX_TASK_CHARACTERS] + "…"),
        "rows": [row_json(row) for row in rows],
    }


def trajectory_json(row: Row, record: Record, texts: TokenTexts) -> Json:
    """A trajectory with its messages and, turn by turn, its tokens.

    Of each sampled token: `engine`, the engine's log-prob, `learner`, the learner's before the update (nats;
    null where the learner has not scored it), and the policy version that sampled it.
    """
    trajectory = record.trajectory
    episode, score = trajectory.episode, trajectory.score
    task, learner = episode.task, record.old_logprobs
    return {
        "row": row_json(row),
        "id": printable(trajectory.id),
        "task": {
            "id": printable(task.id),
            "answer": task.answer and printable(task.answer),
            "seed": None
            if task.seed is None
            else str(task.seed),  # 64 bits, more than a number of JavaScript
            "metadata": plain(task.metadata),
        },
        "score": {
            "parts": plain(score.parts),
            "error": score.error and printable(score.error),
            "error_kind": score.error_kind,
            "explanation": printable(score.explanation),
        },
        "error": trajectory.error
        and {"kind": printable(trajectory.error.kind), "message": printable(trajectory.error.message)},
        "timings_s": plain(trajectory.timings_s),
        "final_state": plain(episode.final_state),
        "metrics": plain(episode.metrics),
        "messages": [_message_json(message, trajectory.call_s) for message in episode.transcript],
        "turns": [
            _turn_json(turn, None if learner is None else learner[place], texts)
            for place, turn in enumerate(trajectory.turns)
        ],
        "is_trained": score.value is not None and record.split == "train",
    }


def plain(value: Any) -> Any:
    """`value` as JSON that a browser reads, with printable text.

    Numbers that are not finite are named, as are integers that a double does not hold.
    """
    match value:
        case bool() | None:
            return value
        case float():
            return value if isfinite(value) else str(value)
        case int():
            return value if abs(value) <= 2**53 else str(value)
        case str():
            return printable(value)
        case dict():
            return {printable(str(key)): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return printable(str(value))


def _interval(rows: Sequence[Row]) -> list[float] | None:
    """The 95 % Wilson interval of success, of all attempted tasks; None where success is not 0 or 1."""
    successes = [row.success or 0.0 for row in rows]
    if all(row.success is None for row in rows) or not {*successes} <= {0.0, 1.0}:
        return None
    return [*wilson_interval(int(sum(successes)), len(successes))]


def _message_json(message: Message, call_s: Mapping[str, float]) -> Json:
    return {
        "role": message.role,
        "text": printable(message.text),
        "is_error": message.is_error,
        "answers": message.tool_call_id and printable(message.tool_call_id),
        "tool_calls": [
            {
                "id": printable(call.id),
                "name": printable(call.name),
                "text": printable(call.text),
                "arguments": plain(dict(call.arguments)),
                "status": str(call.status),
                "problem": printable(call.problem),
                "seconds": call_s.get(call.id),  # None: it did not run, or an older record
            }
            for call in message.tool_calls
        ],
    }


def _turn_json(turn: Turn, learner: tuple[float, ...] | None, texts: TokenTexts) -> Json:
    completion = turn.completion
    return {
        "parent": turn.parent,
        "reward": plain(turn.reward),
        "finish_reason": completion.finish_reason,
        "context": _tokens_json(turn.context_ids, texts),
        "sampled": {
            **_tokens_json(completion.token_ids, texts),
            "engine": plain(completion.logprobs),
            "learner": None if learner is None else plain(learner),
            "versions": [[span.version, span.start, span.end] for span in completion.version_spans],
        },
    }


def _tokens_json(ids: Sequence[int], texts: TokenTexts) -> Json:
    return {"ids": list(ids), "texts": [texts.of(token_id) for token_id in ids]}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
