"""What a judge file (TOML or JSON) says, and what of it is refused before anything starts."""

from __future__ import annotations

import json
import math
import os
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from envs.endpoint import EndpointSpec
from envs.names import unknown_name
from rewards.judge_prompt import require_fields

Mode = Literal["pointwise", "pairwise", "agreement"]
OWN = "self"

_VIEWS = ("task", "transcript", "answer", "reference")
_SIDES = ("task", "first", "second")
_OF_ENDPOINT = (
    "endpoint",
    "model",
    "key_variable",
    "request_s",
    "num_retries",
    "temperature",
    "max_tokens",
    "json_mode",
)
_OF_OWN = ("choices",)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """One judge.

    `mode` pointwise: how good is the answer. pairwise: how much better is the first of answer and reference.
    agreement: do the first and the second say the same. The latter two are asked in both orders.

    `policy = "self"`: the engine that samples, whose weights change as it learns. It is asked for one token,
    one of two `choices`, and the score is the probability of the first of them, given that it is one of the
    two, scaled to [low, high] (arXiv 2408.15240: a verifier is a next token). Otherwise the chat model
    `model` at `endpoint`, whose key is in the environment variable `key_variable`.

    Of a field's text `max_chars` characters are shown. `length_coef` is what an answer pays for being longer
    than its reference (rewards/judge.py), which is `length_reference` characters long where the mode knows
    no other, in units of `length_scale` characters. No more than `num_concurrent` questions are asked at
    once, by each engine's worker.

    Raises:
        ValueError: a value that cannot be, a setting without effect, or a template without its fields.
    """

    template: str
    mode: Mode = "pointwise"
    policy: str = ""
    choices: tuple[str, ...] = ()
    endpoint: str = ""
    model: str = ""
    key_variable: str = ""
    request_s: float = 20.0
    num_retries: int = 3
    temperature: float = 0.0
    max_tokens: int = 512
    json_mode: bool = False
    low: float = 0.0
    high: float = 1.0
    max_chars: int = 8000
    length_coef: float = 0.0
    length_scale: float = 0.0
    length_reference: int = 0
    num_concurrent: int = 32

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_length()
        sides = self.mode != "pointwise"
        require_fields(self.template, _SIDES if sides else _VIEWS, ("first", "second") if sides else ())
        if not sides and not any(f"{{{name}}}" in self.template for name in ("answer", "transcript")):
            raise ValueError("template has neither {answer} nor {transcript}; expected what is to be judged")

    @property
    def needs_reference(self) -> bool:
        """Whether an episode without Task.answer cannot be judged."""
        return self.mode != "pointwise" or "{reference}" in self.template

    @property
    def labels(self) -> tuple[str, str]:
        """The two tokens of a judge of our own: the first says yes, or that the first is better."""
        yes, no = self.choices or (("A", "B") if self.mode == "pairwise" else ("Y", "N"))
        return yes, no

    def endpoint_spec(self) -> EndpointSpec:
        """Where the judge is. Raises ValueError for an address of another form, or a key that is not set."""
        key = os.environ.get(self.key_variable, "") if self.key_variable else ""
        if self.key_variable and not key:
            raise ValueError(
                f"key_variable = {self.key_variable!r}: there is no such environment variable, or it is "
                "empty; export the judge's key under this name"
            )
        return EndpointSpec(
            url=self.endpoint,
            model=self.model,
            key=key,
            request_s=self.request_s,
            num_retries=self.num_retries,
        )

    def _check_choices(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(unknown_name("mode", self.mode, get_args(Mode)))
        if self.policy not in ("", OWN):
            raise ValueError(f"policy = {self.policy!r}; expected {OWN!r}, or an endpoint in its place")
        if bool(self.policy) == bool(self.endpoint):
            given = "both policy and endpoint" if self.policy else "neither policy nor endpoint"
            raise ValueError(f'{given}; expected policy = "{OWN}", or endpoint = "http://..." and model')
        unused = _OF_ENDPOINT if self.policy else _OF_OWN
        default = {field.name: field.default for field in fields(self)}
        for name in unused:
            if getattr(self, name) != default[name]:
                raise ValueError(
                    f"{name} has no effect {'on policy' if self.policy else 'on an endpoint'}; leave it out"
                )
        if self.choices and (len(set(self.choices)) != 2 or len(self.choices) != 2):
            raise ValueError(f"choices = {list(self.choices)}; expected two different texts of a token each")
        if self.endpoint:
            if not self.model:
                raise ValueError("endpoint without model; expected the model's name there")
            self.endpoint_spec()

    def _check_numbers(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}; expected finite ones, low first")
        for name in ("request_s", "max_tokens", "max_chars", "num_concurrent"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} = {value}; expected more than 0, and finite: nothing is unlimited")
        for name in ("num_retries", "temperature", "length_coef", "length_scale", "length_reference"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} = {value}; expected 0 or more")

    def _check_length(self) -> None:
        if (self.length_coef > 0) != (self.length_scale > 0):
            raise ValueError("length_coef and length_scale have an effect only together; give both or none")
        if self.length_reference and (not self.length_coef or self.mode != "pointwise"):
            raise ValueError(
                "length_reference has no effect here: it is for length_coef in mode pointwise; leave it out"
            )
        if self.length_coef and self.mode == "pointwise" and not self.length_reference:
            raise ValueError(
                "length_coef in mode pointwise needs length_reference, the characters of a usual answer"
            )


def read_judge(path: str) -> JudgeSpec:
    """The judge of a .toml or .json file.

    Raises:
        ValueError: it cannot be read, has an unknown key (the nearest is named), a value of another type, or
            one that JudgeSpec refuses; the file is named.
    """
    try:
        return JudgeSpec(**_typed(_table(Path(path).expanduser())))
    except ValueError as error:
        raise ValueError(f"judge {path!r}: {error}") from error


def _table(file: Path) -> dict[str, Any]:
    if file.suffix not in (".toml", ".json"):
        raise ValueError("expected a file that ends in .toml or .json")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    table = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    if not isinstance(table, dict):
        raise ValueError(f"it holds a {type(table).__name__}; expected names and values")
    return table


def _typed(table: dict[str, Any]) -> dict[str, Any]:
    """The table's values with the types of JudgeSpec's fields."""
    known = {field.name: field.default for field in fields(JudgeSpec)}
    typed = {}
    for name, value in table.items():
        if name not in known:
            raise ValueError(unknown_name("key", name, known))
        kind = str if known[name] is MISSING else type(known[name])
        if kind is tuple and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            typed[name] = tuple(value)
        elif kind is float and type(value) is int:
            typed[name] = float(value)
        elif type(value) is kind:
            typed[name] = value
        else:
            wanted = "a list of texts" if kind is tuple else f"a {kind.__name__}"
            raise ValueError(f"{name} = {value!r} is a {type(value).__name__}; expected {wanted}")
    if "template" not in typed:
        raise ValueError("it has no template; expected the question, with fields such as {task}, {answer}")
    return typed
