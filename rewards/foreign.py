"""How functions of TRL, verl and OpenRLHF are called, and what they return, as scores."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from envs.episode import Episode, Score
from envs.messages import Message, Task
from rewards.forms import (
    DOES_NOT_APPLY,
    Form,
    Sample,
    failed,
    finished,
    invalid,
    number_problem,
    plain,
    settle,
    shown,
    together,
)

Pick = Callable[[Mapping[str, Any]], dict[str, Any]]
"""What of named arguments a function takes."""

Scores = list[Score] | Awaitable[list[Score]]

ANSWER_NAMES = ("answer", "solution", "ground_truth", "label")
"""Columns under which a task's answer is found, unless its metadata has one of that name."""


def columns_of(task: Task) -> dict[str, Any]:
    """A task's row of data, as a trainer over a data set has it."""
    answers = dict.fromkeys(ANSWER_NAMES, task.answer) if task.answer is not None else {}
    return {**answers, **task.metadata}


@dataclass(frozen=True)
class TrainerState:
    """What of TRL's trainer_state there is."""

    global_step: int

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has no {name!r} here; it has global_step alone")


@dataclass(frozen=True)
class _Logs:
    """What a TRL function logs in one call."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extra[str(column)] = list(plain(values))

    def log_metric(self, name: str, value: Any) -> None:
        self.metrics[str(name)] = plain(value)

    def added_to(self, score: Score, place: int) -> Score:
        """`score`, of the sample at `place`, with what was logged of it."""
        if score.value is None:
            return score
        logged = {name: values[place] for name, values in self.extra.items() if place < len(values)}
        return replace(score, parts=_numbers(self.metrics), explanation=_explained(logged))


def trl_form(
    name: str, function: Callable[..., Any], pick: Pick, columns: tuple[str, ...], *, conversational: bool
) -> Form:
    """See rewards.adapters.from_trl."""

    def score(samples: Sequence[Sample]) -> Scores:
        logs = _Logs()
        rows = [columns_of(sample.episode.task) for sample in samples]
        parts = [_split(sample.episode) for sample in samples]
        shape = _messages if conversational else _text
        given = {
            **{
                column: [row.get(column) for row in rows]
                for column in dict.fromkeys(key for r in rows for key in r)
            },
            "prompts": [shape(prompt) for prompt, _ in parts],
            "completions": [shape(completion) for _, completion in parts],
            "completion_ids": [list(sample.token_ids) for sample in samples],
            "trainer_state": TrainerState(max((sample.step for sample in samples), default=0)),
            "log_extra": logs.log_extra,
            "log_metric": logs.log_metric,
        }

        def finish(result: object) -> list[Score]:
            scores = finished(name, result, samples, partial(_number_or_none, name))
            return [logs.added_to(score, place) for place, score in enumerate(scores)]

        return settle(partial(function, **pick(given)), finish)

    return Form(name=name, kind="trl", score=score, is_group=True, columns=columns)


def verl_form(
    name: str,
    function: Callable[..., Any],
    pick: Pick,
    columns: tuple[str, ...],
    reward_kwargs: Mapping[str, Any],
) -> Form:
    """See rewards.adapters.from_verl."""

    def score(samples: Sequence[Sample]) -> Scores:
        calls = [pick({**_verl_row(sample.episode), **reward_kwargs}) for sample in samples]
        return together(
            [
                settle(partial(function, **given), partial(_number_or_dict, name, sample=sample))
                for given, sample in zip(calls, samples, strict=True)
            ]
        )

    return Form(name=name, kind="verl", score=score, columns=columns)


def verl_batch_form(
    name: str,
    function: Callable[..., Any],
    pick: Pick,
    columns: tuple[str, ...],
    reward_kwargs: Mapping[str, Any],
) -> Form:
    """See rewards.adapters.from_verl_batch."""

    def score(samples: Sequence[Sample]) -> Scores:
        rows = [_verl_row(sample.episode) for sample in samples]
        given = {
            "data_sources": [row["data_source"] for row in rows],
            "solution_strs": [row["solution_str"] for row in rows],
            "ground_truths": [row["ground_truth"] for row in rows],
            "extra_infos": [row["extra_info"] for row in rows],
            **reward_kwargs,
        }
        convert = partial(_number_or_dict, name)
        return settle(
            partial(function, **pick(given)), lambda result: finished(name, result, samples, convert)
        )

    return Form(name=name, kind="verl batch", score=score, is_group=True, columns=columns)


def openrlhf_form(name: str, function: Callable[..., Any]) -> Form:
    """See rewards.adapters.from_openrlhf."""

    def one(sample: Sample) -> Score | Awaitable[Score]:
        prompt = "".join(f"{entry.text}\n" for entry in _split(sample.episode)[0])
        query = prompt + said(sample.episode)
        label = columns_of(sample.episode.task).get("label")
        return settle(
            partial(function, [query], [prompt], [label]), partial(_openrlhf_score, name, sample=sample)
        )

    def score(samples: Sequence[Sample]) -> Scores:
        return together([one(sample) for sample in samples])

    return Form(name=name, kind="openrlhf", score=score)


def said(episode: Episode) -> str:
    """What the policy said, a line a turn: its text, and its calls in brackets as made. No tool's reply."""
    spoken = (entry for entry in episode.transcript if entry.role == "assistant")
    return "\n".join(entry.text + "".join(f"[{call.text}]" for call in entry.tool_calls) for entry in spoken)


def _verl_row(episode: Episode) -> dict[str, Any]:
    columns = columns_of(episode.task)
    extra = columns.get("extra_info", episode.task.metadata)
    num_turns = sum(entry.role == "assistant" for entry in episode.transcript)
    return {
        "data_source": columns.get("data_source", episode.task.env),
        "solution_str": said(episode),
        "ground_truth": columns.get("ground_truth"),
        "extra_info": {**extra, "num_turns": num_turns} if isinstance(extra, Mapping) else extra,
    }


def _split(episode: Episode) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What was said before the policy first spoke, and all from there on; one that never spoke said ""."""
    roles = [entry.role for entry in episode.transcript]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    return episode.transcript[:first], episode.transcript[first:] or (Message(role="assistant"),)


def _messages(entries: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them."""
    return [_message(entry) for entry in entries]


def _message(entry: Message) -> dict[str, Any]:
    chat: dict[str, Any] = {"role": entry.role, "content": entry.text}
    if entry.tool_calls:
        functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in entry.tool_calls]
        chat["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return chat


def _text(entries: Sequence[Message]) -> str:
    """What was written, of the prompt's messages or by the policy; a tool's reply is not the policy's."""
    written = (entry for entry in entries if entry.role != "tool")
    return "\n".join(entry.text + "".join(f"[{c.text}]" for c in entry.tool_calls) for entry in written)


def _number_or_none(name: str, value: object, sample: Sample) -> Score:
    """A TRL function's result for one sample."""
    return DOES_NOT_APPLY if value is None else _number(name, value, sample)


def _number(name: str, value: object, sample: Sample) -> Score:
    value = plain(value)
    problem = number_problem(value)
    if problem is not None:
        return invalid(name, sample, f"returned {shown(value)}, expected a finite number")
    return Score(value=float(value))  # type: ignore[arg-type]  # no problem: a number


def _number_or_dict(name: str, result: object, sample: Sample) -> Score:
    """verl's result for one sample: a number or bool, or a dict with "score" and whatever is to be logged."""
    if isinstance(result, BaseException):
        return failed(name, sample, result)
    if not isinstance(result, Mapping):
        return _number(name, _counted(result), sample)
    if "score" not in result:
        return invalid(
            name, sample, f"returned a dict without 'score' (it has {', '.join(map(str, result))})"
        )
    score = _number(name, _counted(result["score"]), sample)
    others = {str(key): value for key, value in result.items() if key != "score"}
    return score if score.value is None else _with_logged(score, others)


def _openrlhf_score(name: str, result: object, sample: Sample) -> Score:
    """OpenRLHF's result for a batch of one."""
    if isinstance(result, BaseException):
        return failed(name, sample, result)
    if not isinstance(result, Mapping) or "rewards" not in result:
        return invalid(name, sample, f"returned {shown(result)}, expected a dict with 'rewards'")
    logs = result.get("extra_logs") or {}
    logged = {"scores": result.get("scores"), **(logs if isinstance(logs, Mapping) else {"extra_logs": logs})}
    (score,) = finished(name, _flat(result["rewards"]), [sample], partial(_number, name))
    others = {str(key): _only(value) for key, value in logged.items() if value is not None}
    return score if score.value is None else _with_logged(score, others)


def _flat(value: object) -> object:
    """A batch of one as a list: also where it is one number."""
    value = plain(value)
    return [value] if isinstance(value, int | float) else value


def _only(value: object) -> object:
    """The value of a batch of one."""
    value = plain(value)
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _counted(value: object) -> object:
    """A bool as 0 or 1, which verl allows, also where a result is one of numpy's."""
    value = plain(value)
    return float(value) if isinstance(value, bool) else value


def _with_logged(score: Score, others: Mapping[str, Any]) -> Score:
    """`score` with what came besides it: numbers as parts, the rest in its explanation."""
    parts = _numbers(others)
    rest = {name: value for name, value in others.items() if name not in parts}
    return replace(score, parts=parts, explanation=_explained(rest))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    counted = {name: _counted(value) for name, value in values.items()}
    return {name: float(value) for name, value in counted.items() if number_problem(value) is None}  # type: ignore[arg-type]


def _explained(values: Mapping[str, Any]) -> str:
    """Values that are no numbers, as one line of JSON; nothing for none."""
    return json.dumps(values, default=repr) if values else ""
