"""Whether a TRL function wants its completions as messages or as texts, by what its code reads.

TRL itself decides by the data set (prompts of messages or of text), which a function is written for: one for
messages reads `completion[0]["content"]`, one for texts treats a completion as a `str`. The code says which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

FIELDS = frozenset({"content", "role", "tool_calls"})
"""Of a message. Code that names one reads messages."""

MAX_FUNCTIONS = 200
"""Helpers that are looked into."""


def reads_messages(function: Callable[..., Any]) -> str:
    """The field of a message that the code of `function` or of its module's helpers names; "" for none."""
    named = sorted({name for code in _codes(function) for name in _names(code)} & FIELDS)
    return named[0] if named else ""


def _codes(function: Callable[..., Any]) -> Iterator[CodeType]:
    """The code of a function, of what it wraps or closes over, and of helpers in its own module."""
    waiting: list[object] = [function]
    seen: set[int] = set()
    while waiting and len(seen) < MAX_FUNCTIONS:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, partial):
            waiting.append(one.func)
        elif isinstance(one, MethodType):
            waiting += [one.__func__, *_methods(type(one.__self__))]
        elif isinstance(one, FunctionType):
            waiting += _helpers(one)
            yield one.__code__
        elif not isinstance(one, type) and callable(one):
            waiting += _methods(type(one))


def _methods(kind: type) -> list[object]:
    """Functions of a class of the user's; those of built-in ones have no code to read."""
    found = (value for base in kind.__mro__ for value in vars(base).values())
    return [value for value in found if isinstance(value, FunctionType)]


def _helpers(function: FunctionType) -> Iterator[object]:
    if wrapped := getattr(function, "__wrapped__", None):
        yield wrapped
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if callable(held):
            yield held
    module = getattr(sys.modules.get(function.__module__), "__dict__", function.__globals__)
    for code in _nested(function.__code__):
        for name in code.co_names:
            helper = function.__globals__.get(name, module.get(name))
            if getattr(helper, "__module__", None) == function.__module__:
                yield from _methods(helper) if isinstance(helper, type) else [helper]


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _names(code: CodeType) -> Iterator[str]:
    """The texts and the names of attributes and globals in a code, its inner functions included."""
    for part in _nested(code):
        yield from part.co_names
        yield from _texts(part.co_consts)


def _texts(constants: Any) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _texts(constant)
