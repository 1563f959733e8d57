"""Reward functions written for TRL, verl or OpenRLHF, unchanged: whose one is, by its parameters' names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from envs.episode import Episode
from envs.names import load_object
from rewards.columns import ANSWER_NAMES, columns_of, requiring
from rewards.foreign import openrlhf_form, trl_form, verl_batch_form, verl_form
from rewards.forms import Form, of_episodes, of_groups
from rewards.message_use import reads_messages

UNDERSTOOD = """these four are understood:
  ours       (episode) -> Score, or (episodes) -> list[Score] under @group_reward (rewards/base.py)
  TRL        (completions, completion_ids, prompts, a column of the tasks ..., **kwargs) -> list
  verl       (data_source, solution_str, ground_truth, extra_info=None) -> number or dict;
             in batches (data_sources, solution_strs, ground_truths, extra_infos) -> list
  OpenRLHF   (queries, prompts, labels, **kwargs) -> {"rewards": ..., "scores": ..., "extra_logs": ...}
Say which it is in your file, REWARD = from_trl(my_function), with from_trl, from_verl, from_verl_batch or
from_openrlhf of rewards.adapters, and name that: --reward my_file.py:REWARD"""

TRL_GIVEN = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
)
"""What TRL gives besides the columns of the data."""

VERL_GIVEN = frozenset({"data_source", "solution_str", "ground_truth", "extra_info"})
VERL_BATCH_GIVEN = frozenset({"data_sources", "solution_strs", "ground_truths", "extra_infos"})

RUBRIC_NAMES = frozenset({"states", "answers", "tasks", "infos"})
"""What a verifiers function of a group may take, and a TRL one only where the data have such columns."""

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def adapt(function: object, name: str = "") -> Form:
    """`function` in the form in which it is run; whose signature it has is read off its parameters' names.

    Raises:
        ValueError: it is none of those that are understood, or might be two of them.
    """
    if isinstance(function, Form):
        return replace(function, name=name) if name else function
    function, name = _callable(function, name)
    parameters = _parameters(function, name)
    names = {parameter.name for parameter in parameters}
    kinds = list(_kinds(function, parameters, names))
    if len(kinds) != 1:
        what = f"could be {' or '.join(kinds)}" if kinds else "is none that is known"
        raise ValueError(f"reward {name}{_shown(function)}: whose signature this is {what}; {UNDERSTOOD}")
    match kinds[0]:
        case "TRL's" if names & RUBRIC_NAMES:
            raise ValueError(
                f"reward {name}{_shown(function)}: {', '.join(sorted(names & RUBRIC_NAMES))} may be columns "
                "of the data, as in TRL, or what verifiers gives a function of a group; if it is TRL's, say "
                f"REWARD = from_trl({name}) (rewards/adapters.py) and name that, otherwise: {UNDERSTOOD}"
            )
        case "TRL's":
            return from_trl(function, name=name)
        case "verl's":
            return from_verl(function, name=name)
        case "verl's batch form":
            return from_verl_batch(function, name=name)
        case "OpenRLHF's":
            return from_openrlhf(function, name=name)
        case "ours, of a group":
            form = of_groups(name, _with_columns(function, parameters[1:], together=True))
        case _:
            form = of_episodes(name, _with_columns(function, parameters[1:], together=False))
    uses_sandbox = getattr(function, "uses_sandbox", False)
    return requiring(replace(form, columns=tuple(_required(parameters[1:])), uses_sandbox=uses_sandbox))


def _with_columns(
    function: Callable[..., Any], parameters: Sequence[inspect.Parameter], *, together: bool
) -> Callable[[Any], Any]:
    """`function` of episodes alone: its other named parameters are columns of their tasks."""
    wanted = {p.name: p.default for p in parameters if p.kind not in VARIABLE}

    def call(episodes: Episode | Sequence[Episode]) -> Any:
        group = episodes if together else [episodes]
        rows = [columns_of(cast(Episode, episode).task) for episode in cast(Sequence[Episode], group)]
        given = {
            name: [row.get(name, default) for row in rows]
            for name, default in wanted.items()
            if any(name in row for row in rows)
        }
        return function(episodes, **(given if together else {n: values[0] for n, values in given.items()}))

    return call if wanted else function


def _kinds(function: object, parameters: Sequence[inspect.Parameter], names: set[str]) -> Iterable[str]:
    """Whose function this may be."""
    if {"solution_str", "ground_truth"} <= names:  # verl's own scorers take no data_source
        yield "verl's"
    if "solution_strs" in names and names & {"data_sources", "ground_truths"}:
        yield "verl's batch form"
    if {"queries", "prompts", "labels"} <= names:
        yield "OpenRLHF's"
    if names & {"completions", "completion_ids"}:
        yield "TRL's"
    yield from _native_kind(function, parameters)


def _native_kind(function: object, parameters: Sequence[inspect.Parameter]) -> Iterable[str]:
    if getattr(function, "scores_groups", False):
        yield "ours, of a group"
        return
    if not parameters:
        return
    first = parameters[0]
    annotation = first.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    if re.search(r"\bEpisode\b", text):
        yield "ours, of a group" if "[" in text else "ours"
    elif first.name in ("episode", "trace"):
        yield "ours"


def _callable(function: object, name: str) -> tuple[Callable[..., Any], str]:
    """`function`, an instance of it where it is a class, and what to call it."""
    label = name or str(getattr(function, "__name__", type(function).__name__))
    if isinstance(function, type):
        required = list(_required(_parameters(function, label)))
        if required or not any("__call__" in vars(kind) for kind in function.__mro__):
            raise ValueError(
                f"reward {label} is a class; name an instance of it, REWARD = {label}(...), or a function"
            )
        function = function()
    if not callable(function):
        raise ValueError(f"reward {label!r} is a {type(function).__name__}; expected a function")
    return function, label


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name}: its signature cannot be read ({error}); {UNDERSTOOD}") from error


def _shown(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function))


def _required(parameters: Iterable[inspect.Parameter], given: frozenset[str] = frozenset()) -> Iterable[str]:
    """The names of parameters that have no default and are not `given`."""
    for parameter in parameters:
        is_given = parameter.name in given or parameter.kind in VARIABLE
        if parameter.default is inspect.Parameter.empty and not is_given:
            yield parameter.name


def _takes(function: Callable[..., Any], name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What of named arguments `function` takes: all of them where it has **kwargs."""
    parameters = _parameters(function, name)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict
    names = {parameter.name for parameter in parameters}
    return lambda given: {key: value for key, value in given.items() if key in names}


def from_trl(function: Callable[..., Any], *, conversational: bool | None = None, name: str = "") -> Form:
    """TRL's signature (GRPOTrainer, "Using a custom reward function"): lists over the group, by keyword.

    `prompts` and `completions` are lists of messages (`conversational`) or texts. TRL decides by the data set
    that a function is written for; here it is messages where the function's code names a message's field
    (rewards/message_use.py), or what `conversational` says. Columns are the task's metadata, and its answer
    under each of ANSWER_NAMES that they have not. `trainer_state` has `global_step`, `max_steps` and `epoch`.
    None leaves an episode out.
    """
    function, name = _callable(function, name)
    columns = tuple(_required(_parameters(function, name), TRL_GIVEN))
    field = reads_messages(function)
    is_so = bool(field) if conversational is None else conversational
    own = getattr(function, "__name__", name)
    note = f"{own} gets completions as {'messages' if is_so else 'texts'}: " + (
        f"from_trl(..., conversational={conversational}) says so"
        if conversational is not None
        else f"its code names {field!r}; from_trl({own}, conversational=False) gives texts"
        if field
        else f"its code names no field of a message; from_trl({own}, conversational=True) gives messages"
    )
    takes = _takes(function, name)
    return trl_form(name, function, takes, columns, conversational=is_so, note=note)


def from_verl(function: Callable[..., Any], *, name: str = "", **reward_kwargs: Any) -> Form:
    """verl's signature (custom_reward_function): one answer, by keyword, with `reward_kwargs` besides.

    `solution_str` is what the policy said, in all its turns and without what tools replied.
    """
    function, name = _callable(function, name)
    _require_given(function, name, VERL_GIVEN | reward_kwargs.keys(), "from_verl")
    required = set(_required(_parameters(function, name)))
    columns = ("ground_truth",) if "ground_truth" in required else ()
    return verl_form(name, function, _takes(function, name), columns, reward_kwargs)


def from_verl_batch(function: Callable[..., Any], *, name: str = "", **reward_kwargs: Any) -> Form:
    """verl's signature under its reward manager "batch": as `from_verl`, in lists over the group."""
    function, name = _callable(function, name)
    _require_given(function, name, VERL_BATCH_GIVEN | reward_kwargs.keys(), "from_verl_batch")
    required = set(_required(_parameters(function, name)))
    columns = ("ground_truth",) if "ground_truths" in required else ()
    return verl_batch_form(name, function, _takes(function, name), columns, reward_kwargs)


def from_openrlhf(function: Callable[..., Any], *, name: str = "") -> Form:
    """OpenRLHF's signature (remote reward function in a file): positional lists of one.

    Prompt and query (prompt and response) are ChatML, special tokens included; `labels` is column `label`.
    """
    function, name = _callable(function, name)
    return openrlhf_form(name, function)


def from_file(spec: str) -> Form:
    """The reward that `file.py:name` or `package.module:name` names. It is loaded into this process."""
    return adapt(load_object(spec), spec.rpartition(":")[2])


def _require_given(function: Callable[..., Any], name: str, given: Iterable[str], maker: str) -> None:
    missing = list(_required(_parameters(function, name), frozenset(given)))
    if missing:
        raise ValueError(
            f"reward {name}{_shown(function)}: nothing gives {', '.join(missing)}; give it a default, or a "
            f"value: REWARD = {maker}({name}, {missing[0]}=...)"
        )


__all__ = [
    "ANSWER_NAMES",
    "adapt",
    "from_file",
    "from_openrlhf",
    "from_trl",
    "from_verl",
    "from_verl_batch",
]
