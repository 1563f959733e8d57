"""How functions of TRL, verl and OpenRLHF are called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from envs.episode import Episode, Score
from rewards.chat_text import as_messages, as_text, chatml, split
from rewards.columns import columns_of, requiring, shared_columns
from rewards.forms import Form, Sample, Scores, finished, plain, readable, settle, together
from rewards.results import explained, number_or_dict, number_or_none, numbers, openrlhf_score

Pick = Callable[[Mapping[str, Any]], dict[str, Any]]
"""What of named arguments a function takes."""


@dataclass(frozen=True)
class TrainerState:
    """What of TRL's trainer_state there is. `max_steps` is 0, and `epoch` too, outside a training run.

    Tasks are drawn without end, so an epoch is the whole run: `epoch` is the share of it that has passed.
    """

    global_step: int
    max_steps: int

    @property
    def epoch(self) -> float:
        return self.global_step / self.max_steps if self.max_steps else 0.0

    def __getattr__(self, name: str) -> Any:
        known = "global_step, max_steps and epoch"
        raise AttributeError(f"trainer_state has no {name!r} here; it has {known}")


@dataclass(frozen=True)
class _Logs:
    """What a TRL function logs in one call."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extra[str(column)] = list(plain(values))

    def log_metric(self, name: str, value: Any) -> None:
        self.metrics[str(name)] = plain(value)

    def added_to(self, place: int, own: object, _: Sample) -> Score:
        """The score `own`, of the sample at `place`, with what was logged of it."""
        score = cast(Score, own)
        if score.value is None:
            return score
        logged = {name: values[place] for name, values in self.extra.items() if place < len(values)}
        return replace(score, parts=numbers(self.metrics), explanation=explained(logged))


def trl_form(
    name: str,
    function: Callable[..., Any],
    pick: Pick,
    columns: tuple[str, ...],
    *,
    conversational: bool,
    note: str = "",
) -> Form:
    """See rewards.adapters.from_trl."""

    def score(samples: Sequence[Sample]) -> Scores:
        logs = _Logs()
        parts = [split(sample.episode) for sample in samples]
        shape = as_messages if conversational else as_text
        given = {
            **shared_columns(samples),
            "prompts": [shape(prompt) for prompt, _ in parts],
            "completions": [shape(completion) for _, completion in parts],
            "completion_ids": [list(sample.token_ids) for sample in samples],
            "trainer_state": TrainerState(
                max((sample.step for sample in samples), default=0),
                max((sample.num_steps for sample in samples), default=0),
            ),
            "log_extra": logs.log_extra,
            "log_metric": logs.log_metric,
        }

        def finish(result: object) -> list[Score]:
            scores = finished(name, result, samples, partial(number_or_none, name))
            pairs = enumerate(zip(scores, samples, strict=True))
            return [readable(name, partial(logs.added_to, place), score, s) for place, (score, s) in pairs]

        return settle(partial(function, **pick(given)), finish)

    return _finished_form(
        function, Form(name=name, kind="trl", score=score, is_group=True, columns=columns, note=note)
    )


def verl_form(
    name: str,
    function: Callable[..., Any],
    pick: Pick,
    columns: tuple[str, ...],
    reward_kwargs: Mapping[str, Any],
) -> Form:
    """See rewards.adapters.from_verl."""

    def score(samples: Sequence[Sample]) -> Scores:
        convert = partial(number_or_dict, name)
        calls = [pick({**_verl_row(sample.episode), **reward_kwargs}) for sample in samples]
        return together(
            [
                settle(partial(function, **given), partial(readable, name, convert, sample=sample))
                for given, sample in zip(calls, samples, strict=True)
            ]
        )

    return _finished_form(function, Form(name=name, kind="verl", score=score, columns=columns))


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
        given = {f"{key}s": [row[key] for row in rows] for key in rows[0] if all(key in row for row in rows)}
        convert = partial(number_or_dict, name)
        return settle(
            partial(function, **pick({**given, **reward_kwargs})),
            lambda result: finished(name, result, samples, convert),
        )

    return _finished_form(
        function, Form(name=name, kind="verl batch", score=score, is_group=True, columns=columns)
    )


def openrlhf_form(name: str, function: Callable[..., Any]) -> Form:
    """See rewards.adapters.from_openrlhf."""

    convert = partial(openrlhf_score, name)

    def one(sample: Sample) -> Score | Awaitable[Score]:
        prompt, query = chatml(sample.episode)
        label = columns_of(sample.episode.task)["label"]
        call = partial(function, [query], [prompt], [label])
        return settle(call, partial(readable, name, convert, sample=sample))

    def score(samples: Sequence[Sample]) -> Scores:
        return together([one(sample) for sample in samples])

    return _finished_form(function, Form(name=name, kind="openrlhf", score=score, columns=("label",)))


def _finished_form(function: object, form: Form) -> Form:
    """`form` with what holds for all of them: its columns are there, and a group's members stand alone."""
    return requiring(
        replace(form, can_split=form.is_group, uses_sandbox=getattr(function, "uses_sandbox", False))
    )


def _verl_row(episode: Episode) -> dict[str, Any]:
    """What verl gives of one episode; no ground truth where the task has none."""
    columns = columns_of(episode.task)
    extra = columns.get("extra_info", episode.task.metadata)
    num_turns = sum(entry.role == "assistant" for entry in episode.transcript)
    # Of its reward loop; where rollouts carry no score or field of a tool's, they are empty there too.
    more = {"num_turns": num_turns, "rollout_reward_scores": {}, "tool_extra_fields": {}}
    return {
        "data_source": columns.get("data_source", episode.task.env),
        "solution_str": episode.said,
        **({"ground_truth": columns["ground_truth"]} if "ground_truth" in columns else {}),
        "extra_info": {**extra, **more} if isinstance(extra, Mapping) else extra,
    }
