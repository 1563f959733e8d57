"""Tasks of `coding`: a function as a chain of operations, told in words, with examples and hidden tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from envs.messages import Task, message
from envs.names import unknown_name
from envs.registry import Lengths
from envs.splits import Split, is_held_out, split_of

MAX_VALUE = 10**6  # of any number on the way, so that examples stay short


@dataclass(frozen=True, slots=True)
class Operation:
    """One step: how it is told, how it is written in Python of x, and what it does.

    Where the text names {k}, a number from `low` to `high` is drawn.
    """

    phrase: str
    code: str
    apply: Callable[[Any, int], Any]
    low: int = 0
    high: int = 0


OPERATIONS: Mapping[str, Operation] = {
    "add": Operation("add {k}", "{x}+{k}", lambda x, k: x + k, 2, 99),
    "subtract": Operation("subtract {k}", "{x}-{k}", lambda x, k: x - k, 2, 99),
    "times": Operation("times {k}", "{x}*{k}", lambda x, k: x * k, 2, 99),
    "from": Operation("take from {k}", "{k}-{x}", lambda x, k: k - x, 2, 99),
    "modulo": Operation("remainder by {k}", "{x}%{k}", lambda x, k: x % k, 2, 99),
    "at_most": Operation("at most {k}", "min({x},{k})", min, 2, 99),
    "at_least": Operation("at least {k}", "max({x},{k})", max, 2, 99),
    "absolute": Operation("drop the sign", "abs({x})", lambda x, k: abs(x)),
    "square": Operation("square", "{x}**2", lambda x, k: x**2),
    "add_each": Operation("add {k} to each", "[v+{k} for v in x]", lambda x, k: [v + k for v in x], 2, 9),
    "times_each": Operation("times {k} each", "[v*{k} for v in x]", lambda x, k: [v * k for v in x], 2, 9),
    "modulo_each": Operation(
        "remainder of each by {k}", "[v%{k} for v in x]", lambda x, k: [v % k for v in x], 3, 9
    ),
    "even": Operation(
        "keep the even ones", "[v for v in x if v%2==0]", lambda x, k: [v for v in x if v % 2 == 0]
    ),
    "above": Operation(
        "keep those above {k}", "[v for v in x if v>{k}]", lambda x, k: [v for v in x if v > k], 0, 9
    ),
    "skip": Operation("drop the first {k}", "x[{k}:]", lambda x, k: x[k:], 1, 3),
    "first": Operation("keep the first {k}", "x[:{k}]", lambda x, k: x[:k], 3, 6),
    "reverse": Operation("turn around", "x[::-1]", lambda x, k: x[::-1]),
    "sort": Operation("sort upwards", "sorted(x)", lambda x, k: sorted(x)),
    "unique": Operation("drop repeats", "list(dict.fromkeys(x))", lambda x, k: list(dict.fromkeys(x))),
    "sums": Operation(
        "replace each by the sum up to it",
        "[sum(x[:i+1]) for i in range(len(x))]",
        lambda x, k: list(accumulate(x)),
    ),
    "gaps": Operation(
        "replace by the steps between neighbours",
        "[b-a for a,b in zip(x,x[1:])]",
        lambda x, k: [b - a for a, b in pairwise(x)],
    ),
    "sum": Operation("give the sum", "sum(x)", lambda x, k: sum(x)),
    "count": Operation("give how many", "len(x)", lambda x, k: len(x)),
    "largest": Operation("give the largest, 0 of none", "max(x,default=0)", lambda x, k: max(x, default=0)),
}
_SIMPLE = ("add", "subtract", "times", "from")
_NUMBERS = (*_SIMPLE, "modulo", "at_most", "at_least", "absolute", "square")
_LISTS = tuple(OPERATIONS)[tuple(OPERATIONS).index("add_each") : tuple(OPERATIONS).index("sum")]
_LAST = ("sum", "count", "largest")

Plan = Sequence[Sequence[Any]]
"""The operations in order, each [name, k]; lists, as JSON has no tuples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard: what is chained, on what, and how much of it is shown."""

    num_operations: int
    operations: tuple[str, ...]
    has_lists: bool = False
    has_run: bool = False  # `run` answers, and the task is told in full
    num_examples: int = 1
    num_tests: int = 4  # hidden


LEVELS: Mapping[int, Level] = {
    0: Level(num_operations=1, operations=_SIMPLE, num_tests=2),
    1: Level(num_operations=2, operations=_SIMPLE, num_tests=3),
    2: Level(num_operations=3, operations=_NUMBERS, has_run=True, num_examples=2),
    3: Level(num_operations=2, operations=_LISTS, has_lists=True, has_run=True, num_examples=2),
    4: Level(num_operations=4, operations=_LISTS, has_lists=True, has_run=True, num_examples=2, num_tests=6),
    5: Level(num_operations=8, operations=_LISTS, has_lists=True, has_run=True, num_examples=1, num_tests=8),
}
_TOLD = "Write a Python function f(x) of {kind}. In this order: "
_HELP = "\nTry programs with [run PROGRAM], then give yours with [submit PROGRAM]."
_KINDS = ("a whole number", "a list of whole numbers")


def level_of(level: int | None) -> Level:
    """The level by its number; ValueError with those that exist."""
    if level is None or level not in LEVELS:
        raise ValueError(unknown_name("level of environment 'coding'", level, LEVELS))
    return LEVELS[level]


def make_task(level: int, seed: int) -> Task:
    """The task of (level, seed). What is held out is decided by what the function does, however it is told.

    `metadata["plan"]` lists the operations, `metadata["examples"]` what the prompt shows; the hidden tests
    are made from the plan by `hidden_tests`, and are in no task.
    """
    shape = level_of(level)
    held_out = split_of(seed) is Split.HELD_OUT
    rng = random.Random(f"coding/{level}/{seed}")
    hidden = _inputs(random.Random(f"coding/tests/{level}/{seed}"), shape, shape.num_tests)
    while True:
        plan = [_draw(rng, name) for name in rng.sample(shape.operations, shape.num_operations)]
        if shape.has_lists and rng.random() < 0.5:
            plan[-1] = _draw(rng, rng.choice(_LAST))
        shown = _inputs(rng, shape, shape.num_examples)
        if _is_fair(plan, hidden, shown) and is_held_out(_behaviour(plan, shape)) == held_out:
            break
    examples = [[x, apply(plan, x)] for x in shown]
    return Task(
        id=f"coding-{level}-{seed}",
        env="coding",
        messages=(message("user", _text(plan, examples, shape)),),
        answer=program(plan),
        metadata={"plan": plan, "examples": examples},
        level=level,
        seed=seed,
    )


def _draw(rng: random.Random, name: str) -> list[Any]:
    operation = OPERATIONS[name]
    return [name, rng.randint(operation.low, operation.high)]


def _inputs(rng: random.Random, shape: Level, number: int) -> list[Any]:
    """Different inputs; lists have repeats, and one of them in five is short."""
    inputs: list[Any] = []
    while len(inputs) < number:
        if shape.has_lists:
            x: Any = [rng.randint(-9, 20) for _ in range(rng.choice((2, 5, 6, 7, 8)))]
        else:
            x = rng.randint(-20, 99)
        if x not in inputs:
            inputs.append(x)
    return inputs


def _steps(plan: Plan, x: Any) -> list[Any]:
    """What each operation gives, in order."""
    values = []
    for name, k in plan:
        x = OPERATIONS[name].apply(x, k)
        values.append(x)
    return values


def apply(plan: Plan, x: Any) -> Any:
    """What the function of `plan` gives for x."""
    return _steps(plan, x)[-1] if plan else x


def _is_fair(plan: Plan, hidden: Sequence[Any], shown: Sequence[Any]) -> bool:
    """Every operation changes some hidden result, most results differ, and no number grows long."""
    results = [apply(plan, x) for x in hidden]
    numbers = [
        v for x in (*hidden, *shown) for y in _steps(plan, x) for v in (y if isinstance(y, list) else [y])
    ]
    return (
        max(map(abs, numbers), default=0) <= MAX_VALUE
        and 2 * len(set(map(str, results))) > len(results)
        and not any(x in hidden for x in shown)
        and all([apply([*plan[:i], *plan[i + 1 :]], x) for x in hidden] != results for i in range(len(plan)))
    )


def _behaviour(plan: Plan, shape: Level) -> str:
    """One text for all plans that do the same, as far as forty inputs show."""
    probes = _inputs(random.Random("coding/probes"), shape, 40)
    return str([apply(plan, x) for x in probes])


def _text(plan: Plan, examples: Sequence[Sequence[Any]], shape: Level) -> str:
    told = ", ".join(OPERATIONS[name].phrase.format(k=k) for name, k in plan)
    shown = "; ".join(f"f({_written(x)})={_written(y)}" for x, y in examples)
    if not shape.has_run:
        return f"{told}; {shown}"
    return f"{_TOLD.format(kind=_KINDS[shape.has_lists])}{told}.\n{shown}{_HELP}"


def _written(value: Any) -> str:
    return str(value).replace(" ", "")


def program(plan: Plan) -> str:
    """A solution: one expression of numbers, a line an operation of lists."""
    if plan[0][0] in _NUMBERS:
        expression = "x"
        for name, k in plan:
            operand = expression if expression.isidentifier() else f"({expression})"
            expression = OPERATIONS[name].code.format(x=operand, k=k)
        return f"def f(x):return {expression}"
    lines = [f" x={OPERATIONS[name].code.format(k=k)}" for name, k in plan]
    return "\n".join(["def f(x):", *lines, " return x"])


def hidden_tests(task: Task) -> list[list[Any]]:
    """The hidden tests, [args, expected] each: made anew from level, seed and plan."""
    shape = level_of(task.level)
    hidden = _inputs(random.Random(f"coding/tests/{task.level}/{task.seed}"), shape, shape.num_tests)
    return [[[x], apply(task.metadata["plan"], x)] for x in hidden]


def lengths(level: int) -> Lengths:
    """Bounds from the level's phrases, and from MAX_VALUE for the numbers of an example."""
    shape = level_of(level)
    n = shape.num_operations
    operations = [OPERATIONS[name] for name in (*shape.operations, *(_LAST if shape.has_lists else ()))]
    phrase = max(len(operation.phrase.format(k=operation.high)) for operation in operations)
    code = max(len(operation.code.format(x="", k=operation.high)) for operation in operations)
    number = len(f"-{MAX_VALUE}")
    given, result = (8 * len(",-9") + 1, 8 * (number + 1) + 1) if shape.has_lists else (len("-20"), number)
    told = len(_TOLD) + len(_KINDS[shape.has_lists]) + len(".\n") + len(_HELP) if shape.has_run else 0
    written = len("def f(x):\n return x") + n * (code + (len("\n x=") if shape.has_lists else len("()")))
    return Lengths(
        prompt_chars=told + n * (phrase + 2) + shape.num_examples * (len("; f()=") + given + result),
        turns=2 if shape.has_run else 1,
        turn_chars=written + (len("[run \nprint(f())]") + 8 * len(", -9") if shape.has_run else 0),
        reply_chars=8 * (number + 2) + 2 if shape.has_run else 0,
    )
