"""arith: one question, one number.

    user       120+345
    assistant  465

No tool: what is asked must be worked out in the one message. Its last line is the answer, exact to the
character; lines above it are free, so a model that reasons may. Higher levels carry, mix operators, take a
remainder (`(12*34)%7`, never negative) and write numbers in other bases: `201_3` is 201 in base 3, which is
19. Answers are always decimal.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from envs.episode import Episode, Score
from envs.messages import Message, StopReason, Task, message
from envs.names import unknown_name
from envs.registry import EnvDefinition, Lengths, Player
from envs.splits import Split, is_held_out, split_of
from envs.tool_env import ToolEnv

DIGITS = string.digits + string.ascii_uppercase

Terms = Sequence[tuple[str, int]]
"""The operator before each number, "+" before the first, and the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard: the numbers, what joins them, and how they are written."""

    num_terms: int
    num_digits: int
    operators: str = "+"
    has_carries: bool = True  # False: each column of digits adds up to 9 at most
    max_modulus: int = 0  # 0: no remainder is taken
    bases: tuple[int, ...] = (10,)  # a number is written in any of them


LEVELS: Mapping[int, Level] = {
    0: Level(num_terms=2, num_digits=3, has_carries=False),
    1: Level(num_terms=2, num_digits=3),
    2: Level(num_terms=3, num_digits=3, operators="+-"),
    3: Level(num_terms=3, num_digits=2, operators="+-*"),
    4: Level(num_terms=5, num_digits=3, operators="+-*", max_modulus=97),
    5: Level(num_terms=8, num_digits=6, operators="+-*", max_modulus=997, bases=(2, 3, 8, 10, 16)),
}


def _level(level: int | None) -> Level:
    if level is None or level not in LEVELS:
        raise ValueError(unknown_name("level of environment 'arith'", level, LEVELS))
    return LEVELS[level]


def make_task(level: int, seed: int) -> Task:
    """The task of (level, seed). What is held out is decided by the numbers, in whatever order they stand."""
    shape = _level(level)
    held_out = split_of(seed) is Split.HELD_OUT
    rng = random.Random(f"arith/{level}/{seed}")
    while True:
        terms = _draw_terms(rng, shape)
        modulus = rng.randint(2, shape.max_modulus) if shape.max_modulus else 0
        answer = value_of(terms) % modulus if modulus else value_of(terms)
        # An answer that stands in the prompt could be copied.
        if answer not in {modulus, *(number for _, number in terms)} and (
            is_held_out(_canonical(terms, modulus)) == held_out
        ):
            break
    return Task(
        id=f"arith-{level}-{seed}",
        env="arith",
        messages=(message("user", _text(rng, terms, modulus, shape.bases)),),
        answer=str(answer),
        level=level,
        seed=seed,
    )


def _draw_terms(rng: random.Random, shape: Level) -> list[tuple[str, int]]:
    if not shape.has_carries:
        columns = [_draw_column(rng, shape.num_terms, least=index == 0) for index in range(shape.num_digits)]
        return [("+", int("".join(map(str, digits)))) for digits in zip(*columns, strict=True)]
    low, high = 10 ** (shape.num_digits - 1), 10**shape.num_digits - 1
    operators = ["+", *rng.choices(shape.operators, k=shape.num_terms - 1)]
    return [(operator, rng.randint(low, high)) for operator in operators]


def _draw_column(rng: random.Random, num_terms: int, *, least: int) -> list[int]:
    """A digit of each number, `least` or more, together 9 at most."""
    while True:
        digits = [rng.randint(least, 9) for _ in range(num_terms)]
        if sum(digits) <= 9:
            return digits


def _summands(terms: Terms) -> list[tuple[int, list[int]]]:
    """Sign and factors of each summand: a product binds more tightly than a sum."""
    summands: list[tuple[int, list[int]]] = []
    for operator, number in terms:
        if operator == "*":
            summands[-1][1].append(number)
        else:
            summands.append((-1 if operator == "-" else 1, [number]))
    return summands


def value_of(terms: Terms) -> int:
    """What the terms come to."""
    return sum(sign * prod(factors) for sign, factors in _summands(terms))


def _canonical(terms: Terms, modulus: int) -> str:
    """One text for all questions that differ only in the order of summands or factors, or in bases."""
    return f"{sorted((sign, sorted(factors)) for sign, factors in _summands(terms))}%{modulus}"


def _text(rng: random.Random, terms: Terms, modulus: int, bases: Sequence[int]) -> str:
    written = "".join(operator + in_base(number, rng.choice(bases)) for operator, number in terms)[1:]
    return f"({written})%{modulus}" if modulus else written


def in_base(number: int, base: int) -> str:
    """A number from 0 on as digits, with `_base` behind them unless that is 10."""
    if base == 10:
        return str(number)
    digits = ""
    while number or not digits:
        number, digit = divmod(number, base)
        digits = DIGITS[digit] + digits
    return f"{digits}_{base}"


class ArithEnv(ToolEnv):
    """Offers no tool: the first message ends the episode, whatever it says."""

    def is_over(self) -> bool:
        return True


def score(episode: Episode) -> Score:
    """1.0 when the last line is the answer, else 0.0."""
    last_line = episode.answer.rpartition("\n")[2].strip()
    is_right = episode.stop_reason is StopReason.ANSWERED and last_line == episode.task.answer
    return Score(value=float(is_right), success=float(is_right), parts={"answer": float(is_right)})


def reference(task: Task, transcript: Sequence[Message]) -> str:
    """Says the answer."""
    return str(task.answer)


def lengths(level: int) -> Lengths:
    """Bounds from the level's numbers; a number is longest in its smallest base."""
    shape = _level(level)
    high = 10**shape.num_digits - 1
    longest = max(len(in_base(high, base)) for base in shape.bases)
    power = shape.num_terms if "*" in shape.operators else 1
    # n numbers of one sign, or their product: n * high^power bounds both, and the minus sign comes on top.
    largest = shape.max_modulus - 1 if shape.max_modulus else shape.num_terms * high**power
    can_be_negative = "-" in shape.operators and not shape.max_modulus
    brackets = len(f"()%{shape.max_modulus}") if shape.max_modulus else 0
    return Lengths(
        prompt_chars=shape.num_terms * (longest + 1) - 1 + brackets,
        turns=1,
        turn_chars=len(str(largest)) + can_be_negative,
        reply_chars=0,
    )


def _numbers(task: Task) -> list[str]:
    return re.findall(r"[0-9A-F]+(?=_)|(?<!_)\b\d+\b", task.messages[-1].text)


def _answer(task: Task) -> int:
    return int(str(task.answer))


HACKS: Mapping[str, Player] = {
    "echo": lambda task, _: task.messages[-1].text,
    "first_number": lambda task, _: _numbers(task)[0],
    "last_number": lambda task, _: _numbers(task)[-1],
    "off_by_one": lambda task, _: str(_answer(task) + 1),
    "other_sign": lambda task, _: str(-_answer(task) or "-0"),
    "leading_zero": lambda task, _: f"0{task.answer}",
    "float": lambda task, _: f"{task.answer}.0",
    "two_answers": lambda task, _: f"{task.answer} or {_answer(task) + 1}",
    "right_then_wrong": lambda task, _: f"{task.answer}\n{_answer(task) + 1}",
    "in_words": lambda task, _: f"the answer is {task.answer}",
    "question_and_answer": lambda task, _: f"{task.messages[-1].text}={task.answer}",
    "as_a_call": lambda task, _: f"[{task.answer}]",
    "every_number": lambda task, _: " ".join(map(str, range(100))) + f" {task.answer}",
}

ENV = EnvDefinition(
    name="arith",
    make_env=ArithEnv,
    make_task=make_task,
    levels=tuple(LEVELS),
    score=score,
    reference=reference,
    lengths=lengths,
    hacks=HACKS,
)
