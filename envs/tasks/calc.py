"""calc: arithmetic whose intermediate values come from a calculator that does one operation a call.

    user       (12+34)*5
    assistant  [calc 12+34]
    tool       46
    assistant  [calc 46*5]
    tool       230
    assistant  230

Mental arithmetic does not count: an episode succeeds when its answer is right *and* each operation of the
expression was computed by the calculator, from operands that the prompt shows or that the calculator had
returned in an earlier turn. Otherwise a large model would skip the tools that the environment exists to
exercise, and a small one would be paid for a lucky number.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.episode import Episode, Score
from envs.messages import Message, StopReason, Task, message
from envs.names import unknown_name
from envs.registry import EnvDefinition, Lengths, Player
from envs.splits import Split, is_held_out, split_of
from envs.tool_env import ToolEnv
from envs.tools import ToolError, tool

MAX_VALUE = 99_999  # of any intermediate value: observations stay within five characters
_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COMMUTATIVE = "+*"
_CALL = re.compile(r"\s*(-?[0-9]{1,9})\s*([-+*])\s*(-?[0-9]{1,9})\s*")

Tree = int | tuple["Tree", str, "Tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard: operations to chain, their nesting, and what the world adds."""

    num_operations: int
    left_nested: bool = False  # (a.b).c only; otherwise any binary tree
    has_estimator: bool = False  # `est` answers, with rounded values
    fault_rate: float = 0.0  # of well-formed calc calls; never two in a row, so one retry is enough


LEVELS: Mapping[int, Level] = {
    1: Level(num_operations=2, left_nested=True),
    2: Level(num_operations=2),
    3: Level(num_operations=3),
    4: Level(num_operations=4, has_estimator=True),
    5: Level(num_operations=5, has_estimator=True, fault_rate=0.1),
}


def _level(level: int | None) -> Level:
    if level is None or level not in LEVELS:
        raise ValueError(unknown_name("level of environment 'calc'", level, LEVELS))
    return LEVELS[level]


def make_task(level: int, seed: int) -> Task:
    """The task of (level, seed). `metadata["plan"]` lists its operations in order: [a, operator, b, value].

    Which expressions are held out is decided by the expression, not by the seed: two splits that drew the
    same expression by chance would otherwise share it.
    """
    shape = _level(level)
    held_out = split_of(seed) is Split.HELD_OUT
    rng = random.Random(f"calc/{level}/{seed}")  # not Random(seed): that stream is the episode's
    while True:
        tree = _draw_tree(rng, shape.num_operations, shape.left_nested)
        plan = _plan(tree)
        expression = _text(tree)[1:-1]
        if _is_fair(expression, plan) and is_held_out(_canonical(tree)) == held_out:
            break
    return Task(
        id=f"calc-{level}-{seed}",
        env="calc",
        messages=(message("user", expression),),
        answer=str(plan[-1][-1]),
        metadata={"plan": plan},
        level=level,
        seed=seed,
    )


def _draw_tree(rng: random.Random, num_operations: int, left_nested: bool) -> Tree:
    """Two leaves side by side are 10-99; a leaf beside an operation is 2-9, which keeps products small."""
    num_left = num_operations - 1 if left_nested else rng.randrange(num_operations)
    num_right = num_operations - 1 - num_left
    low, high = (10, 99) if num_operations == 1 else (2, 9)
    left = _draw_tree(rng, num_left, left_nested) if num_left else rng.randint(low, high)
    right = _draw_tree(rng, num_right, left_nested) if num_right else rng.randint(low, high)
    return left, rng.choice("+-*"), right


def _plan(tree: Tree) -> list[list[Any]]:
    """The operations of `tree` in post-order, each [a, operator, b, value]; lists, as JSON has no tuples."""
    if isinstance(tree, int):
        return []
    left, symbol, right = tree
    left_plan, right_plan = _plan(left), _plan(right)
    a = left if isinstance(left, int) else left_plan[-1][-1]
    b = right if isinstance(right, int) else right_plan[-1][-1]
    return [*left_plan, *right_plan, [a, symbol, b, _OPERATORS[symbol](a, b)]]


def _text(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({_text(tree[0])}{tree[1]}{_text(tree[2])})"


def _canonical(tree: Tree) -> str:
    """One text for all expressions that differ only in the order of a sum's or a product's operands."""
    if isinstance(tree, int):
        return str(tree)
    a, b = _canonical(tree[0]), _canonical(tree[2])
    if tree[1] in _COMMUTATIVE:
        a, b = sorted((a, b))
    return f"({a}{tree[1]}{b})"


def _is_fair(expression: str, plan: Sequence[Sequence[Any]]) -> bool:
    """Every value is new (not in the prompt, not computed before), so none is right by copying another."""
    written = {int(digits) for digits in re.findall("[0-9]+", expression)}
    values = [value for *_, value in plan]
    return (
        all(0 <= value <= MAX_VALUE for value in values)
        and len(set(values)) == len(values)
        and written.isdisjoint(values)
    )


class CalcEnv(ToolEnv):
    """Offers `calc` and `est`. `est` is listed at every level, as tools are known before the task is."""

    async def setup(self) -> None:
        self.level = _level(self.task.level)
        self.operations: list[list[Any]] = []  # [turn, a, operator, b, value] of each call that calc answered
        self.was_busy = False

    @tool
    def calc(self, expression: str) -> str:
        """Compute one operation (+, - or *) on two integers, for example 12+34."""
        a, symbol, b = _read_operation(expression)
        self.was_busy = not self.was_busy and self.rng.random() < self.level.fault_rate
        if self.was_busy:
            raise ToolError("busy, try again")
        value = _OPERATORS[symbol](a, b)
        self.operations.append([self.turn, a, symbol, b, value])
        return str(value)

    @tool
    def est(self, expression: str) -> str:
        """Estimate one operation on two integers: the result rounded to one digit."""
        if not self.level.has_estimator:
            raise ToolError("est is off at this level")
        a, symbol, b = _read_operation(expression)
        value = _OPERATORS[symbol](a, b)
        return str(round(value, 1 - len(str(abs(value)))))

    def final_state(self) -> Mapping[str, Any]:
        return {"operations": list(self.operations)}

    def turn_reward(self) -> float:
        """The share of the expression's operations that this turn was the first to have computed."""
        plan = self.task.metadata["plan"]
        turns = _computed(plan, self.operations).values()
        return sum(turn == self.turn for turn in turns) / len(plan)


def _read_operation(expression: str) -> tuple[int, str, int]:
    match = _CALL.fullmatch(expression)
    if match is None:
        raise ToolError("one operation a call, like 12+34")
    return int(match[1]), match[2], int(match[3])


def score(episode: Episode) -> Score:
    """1.0 when the answer is right and the calculator did every operation of the expression, else 0.0."""
    plan = episode.task.metadata["plan"]
    computed = _computed(plan, episode.final_state["operations"])
    is_right = episode.stop_reason is StopReason.ANSWERED and episode.answer == episode.task.answer
    success = float(is_right and len(computed) == len(plan))
    parts = {"answer": float(is_right), "operations": len(computed) / len(plan)}
    return Score(value=success, success=success, parts=parts)


def _computed(plan: Sequence[Sequence[Any]], operations: Sequence[Sequence[Any]]) -> dict[int, int]:
    """The plan's values that the calculator gave, each with the turn in which the policy first asked for it.

    An operation counts when its operands stood in the prompt or had been computed in an earlier turn.
    """
    value_of = {(a, symbol, b): value for a, symbol, b, value in plan}
    value_of |= {(b, symbol, a): value for a, symbol, b, value in plan if symbol in _COMMUTATIVE}
    turn_of: dict[int, int] = {}
    for turn, a, symbol, b, value in operations:
        operands_seen = all(turn_of.get(x, turn) < turn for x in (a, b) if x in value_of.values())
        if (a, symbol, b) in value_of and operands_seen:
            turn_of.setdefault(value, turn)
    return turn_of


def _call(name: str, step: Sequence[Any]) -> str:
    a, symbol, b, _ = step
    return f"[{name} {a}{symbol}{b}]"


def _replies(transcript: Sequence[Message]) -> list[str]:
    return [reply.text for reply in transcript if reply.role == "tool" and not reply.is_error]


def reference(task: Task, transcript: Sequence[Message]) -> str:
    """Follows the plan, repeating a call that met a fault."""
    plan, replies = task.metadata["plan"], _replies(transcript)
    for step, reply in zip(plan, replies, strict=False):
        if reply != str(step[-1]):
            raise ValueError(f"{task.id}: {_call('calc', step)} gave {reply}, expected {step[-1]}")
    return _call("calc", plan[len(replies)]) if len(replies) < len(plan) else str(task.answer)


def lengths(level: int) -> Lengths:
    """Bounds from the grammar: n operations have n+1 leaves of at most two digits and n-1 bracket pairs."""
    n = _level(level).num_operations
    faults = _level(level).fault_rate > 0
    return Lengths(
        prompt_chars=2 * (n + 1) + n + 2 * (n - 1),
        turns=(2 * n if faults else n) + 1,
        turn_chars=len("[calc 99999*99999]"),
        reply_chars=len("error: busy, try again") if faults else len("99999"),
    )


def _then_answer(*calls: Callable[[Task], str]) -> Player:
    """A player that makes these calls, one message each, then gives the right answer all the same."""

    def player(task: Task, transcript: Sequence[Message]) -> str:
        num_spoken = sum(spoken.role == "assistant" for spoken in transcript)
        return calls[num_spoken](task) if num_spoken < len(calls) else str(task.answer)

    return player


def _estimates(task: Task, transcript: Sequence[Message]) -> str:
    """Every operation from `est`, then the last thing it said."""
    num_spoken, plan = sum(spoken.role == "assistant" for spoken in transcript), task.metadata["plan"]
    return _call("est", plan[num_spoken]) if num_spoken < len(plan) else "".join(_replies(transcript)[-1:])


HACKS: Mapping[str, Player] = {
    "mental_arithmetic": _then_answer(),
    "mental_first_step": _then_answer(lambda task: _call("calc", task.metadata["plan"][-1])),
    "all_in_one_turn": _then_answer(
        lambda task: "".join(_call("calc", step) for step in task.metadata["plan"])
    ),
    "answer_plus_zero": _then_answer(lambda task: f"[calc {task.answer}+0]"),
    "whole_expression": _then_answer(lambda task: f"[calc {task.messages[-1].text}]"),
    "unclosed_calls": _then_answer(*[lambda task: _call("calc", task.metadata["plan"][0])[:-1]] * 2),
    "first_number": lambda task, _: re.findall("[0-9]+", task.messages[-1].text)[0],
    "echo": lambda task, _: task.messages[-1].text,
    "estimates": _estimates,
}

ENV = EnvDefinition(
    name="calc",
    make_env=CalcEnv,
    make_task=make_task,
    levels=tuple(LEVELS),
    score=score,
    reference=reference,
    lengths=lengths,
    hacks=HACKS,
)
