"""The program that runs one case of a code task inside a sandbox; `envs/sandbox/grading.py` sends it as text.

Reads {"solution", "entry", "args"} as JSON from stdin and writes {"value": ...} or {"raised": "why"} to
descriptor 3. The expected value is not in here: whatever a solution does to this process, all it can change
is the value that the host compares. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from types import ModuleType
from typing import Any

MAX_DEPTH = 100
_OWN_DESCRIPTOR = 99  # where the result's pipe is moved to: a stray write to descriptor 3 goes nowhere


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as what JSON can say: subclasses as their base, tuples as lists.

    Raises:
        ValueError: it holds something else (a set, a generator, a key that is no str), or nests too deeply.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"a value nests more than {MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return [plain(item, depth + 1) for item in tuple.__iter__(value)]
    if isinstance(value, dict):
        items = {}
        for key, item in dict.items(value):
            if not isinstance(key, str):
                raise ValueError(f"a dict has the key {key!r:.50}; JSON has str keys only")
            items[str.__str__(key)] = plain(item, depth + 1)
        return items
    raise ValueError(f"{type(value).__name__} is no value of JSON")


class Undefined(Exception):
    """The solution does not define the function that it was asked for."""


def call(solution: str, entry: str, args: list[Any]) -> Any:
    """What `entry` of `solution` returns, as plain data; whatever the solution raises passes through."""
    module = ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses and pickle look their module up
    exec(compile(solution, "solution.py", "exec"), module.__dict__)
    if entry not in vars(module):
        raise Undefined
    return plain(vars(module)[entry](*args))


def main() -> None:
    request = json.load(sys.stdin)
    # Before the solution can replace them.
    leave, write, dumps, whoami = os._exit, os.write, json.dumps, os.getpid
    own_pid = whoami()
    out = fcntl.fcntl(3, fcntl.F_DUPFD_CLOEXEC, _OWN_DESCRIPTOR)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(4):
        os.dup2(nowhere, descriptor)
    sys.argv = ["solution.py"]
    try:
        text = dumps({"value": call(**request)}, allow_nan=False)
    except BaseException as error:
        text = dumps({"raised": type(error).__name__})
    if whoami() != own_pid:  # a fork that came back from the solution as well
        leave(1)
    rest = text.encode()
    while rest:
        rest = rest[write(out, rest) :]
    leave(0)  # no atexit, no thread and no finalizer of the solution's runs after this


if __name__ == "__main__":
    main()
