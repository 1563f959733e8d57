"""arith: every answer is checked by Python's own arithmetic, and only the answer counts."""

import asyncio
import random
import re
from dataclasses import replace

import pytest

from envs.check import check_env
from envs.messages import StopReason, Task, message
from envs.play import play
from envs.splits import Split, task_seed
from envs.tasks.arith import DIGITS, ENV, LEVELS, ArithEnv, in_base, score

TASK = Task(
    id="t", env="arith", messages=(message("user", "120+345"),), answer="465", metadata={}, level=0, seed=0
)


def scored(text: str, task: Task = TASK) -> float | None:
    return score(asyncio.run(play(ArithEnv, task, lambda task, seen: text, max_turns=3))).value


@pytest.mark.parametrize("level", ENV.levels)
def test_arith_keeps_the_contract(level: int):
    check_env(ENV, [level], num_seeds=16)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("465", 1.0),
        (" 465\n", 1.0),
        ("5 and 0, 4 and 2\n465", 1.0),  # working above the last line is free
        ("465\n466", 0.0),
        ("0465", 0.0),
        ("+465", 0.0),
        ("465.0", 0.0),
        ("120+345=465", 0.0),
        ("465 466", 0.0),
        ("[calc 465]", 0.0),
        ("", 0.0),
    ],
)
def test_the_last_line_is_the_answer_or_nothing(text: str, value: float):
    assert scored(text) == value


def test_one_message_ends_the_episode():
    episode = asyncio.run(play(ArithEnv, TASK, lambda task, seen: "[calc 120+345]", max_turns=3))
    assert [m.role for m in episode.transcript] == ["user", "assistant", "tool"]
    assert episode.stop_reason is StopReason.ANSWERED


def test_an_answer_that_was_cut_off_is_none():
    episode = asyncio.run(play(ArithEnv, TASK, lambda task, seen: "465", max_turns=3))
    assert score(replace(episode, stop_reason=StopReason.MAX_TURN_TOKENS)).value == 0.0


@pytest.mark.parametrize("level", ENV.levels)
def test_answers_are_pythons_own(level: int):
    """Numbers of other bases are read by int(digits, base); Python's % is never below 0."""
    for split in Split:
        for index in range(150):
            task = ENV.make_task(level, task_seed(split, 0, index))
            text = task.messages[-1].text
            decimal = re.sub(r"([0-9A-F]+)_(\d+)", lambda match: str(int(match[1], int(match[2]))), text)
            assert task.answer == str(eval(decimal)), text
            assert task.answer not in re.findall(r"\d+", decimal), "it could be copied"


def test_level_0_never_carries_and_level_1_does():
    def carries(level: int, seed: int) -> bool:
        a, b = ENV.make_task(level, seed).messages[-1].text.split("+")
        assert len(a) == len(b) == 3
        return any(int(x) + int(y) > 9 for x, y in zip(a, b, strict=True))

    assert not any(carries(0, seed) for seed in range(500))
    assert sum(carries(1, seed) for seed in range(500)) > 300


def test_the_top_level_writes_in_every_base():
    texts = "".join(ENV.make_task(5, seed).messages[-1].text for seed in range(50))
    assert {int(base) for base in re.findall(r"_(\d+)", texts)} == {*LEVELS[5].bases} - {10}


@pytest.mark.parametrize(("number", "base", "text"), [(19, 3, "201_3"), (0, 2, "0_2"), (255, 16, "FF_16")])
def test_numbers_in_other_bases(number: int, base: int, text: str):
    assert in_base(number, base) == text
    assert in_base(number, 10) == str(number)
    assert [in_base(n, 16)[0] for n in range(16)] == list(DIGITS[:16])


@pytest.mark.parametrize("level", ENV.levels)
def test_stated_lengths_are_bounds_and_close_ones(level: int):
    tasks = [ENV.make_task(level, seed) for seed in range(300)]
    stated = ENV.lengths(level)
    longest = (
        max(len(task.messages[-1].text) for task in tasks),
        max(len(task.answer or "") for task in tasks),
    )
    assert longest[0] <= stated.prompt_chars <= 1.5 * longest[0]
    assert longest[1] <= stated.turn_chars <= longest[1] + 2


# Level 0: an answer is one of 800 numbers (a leading digit from 2 to 9), level 1 one of 1799; a remainder of
# level 4 is at least one of 2, by a modulus from 2 to 97: sum(1/m)/96 = 0.044.
@pytest.mark.parametrize(("level", "at_most"), [(0, 0.01), (1, 0.01), (4, 0.08)])
def test_a_random_number_of_the_right_size_is_seldom_right(level: int, at_most: float):
    def guess(task: Task) -> str:
        rng = random.Random(task.id)
        if LEVELS[level].max_modulus:
            return str(rng.randrange(int(task.messages[-1].text.rpartition("%")[2])))
        return str(rng.randint(10 ** (len(task.answer or "") - 1), 10 ** len(task.answer or "") - 1))

    tasks = [ENV.make_task(level, task_seed(Split.HELD_OUT, 0, index)) for index in range(1000)]
    assert sum(scored(guess(task), task) or 0.0 for task in tasks) <= at_most * 1000


def test_held_out_numbers_are_not_trained_on_in_either_order():
    def drawn(split: Split, level: int) -> set[tuple[str, ...]]:
        texts = (ENV.make_task(level, task_seed(split, 0, i)).messages[-1].text for i in range(3000))
        return {tuple(sorted(text.split("+"))) for text in texts}

    for level in (0, 1):
        train, warm_start, held_out = (drawn(split, level) for split in Split)
        assert held_out.isdisjoint(train | warm_start)
        assert min(map(len, (train, warm_start, held_out))) > 2500


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"unknown level of environment 'arith' '9' \(known: 0, 1, 2, 3"):
        ENV.make_task(9, 0)
