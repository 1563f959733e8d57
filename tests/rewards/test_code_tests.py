"""Code by its tests: what a solution computes counts, and nothing else that it does."""

import asyncio
import os
import random
import re
import signal
import textwrap
from pathlib import Path

import pytest

from envs.episode import Episode
from envs.messages import StopReason, Task, message
from envs.sandbox.base import Limits, SandboxTooWeakError
from envs.sandbox.choosing import BUILT_IN, choose
from envs.sandbox.grading import CaseResult, Place, grade_cases, make_cases, same
from rewards.code_tests import code_in, code_tests, grade, grade_async

# The function that is asked for: the sorted list of the numbers whose square is in the list as well.
TESTS = [
    [[[3, 9, 2, 5]], [3]],
    [[[4, 2, 16]], [2, 4]],
    [[[7, 8]], []],
]
RIGHT = "def find(xs):\n    return sorted(x for x in xs if x * x in xs)\n"
PLACE = Place(limits=Limits(wall_s=2, mem_mb=256, disk_mb=20))


def solutions(file: str) -> dict[str, str]:
    """Programs by name, each under a line `## name`."""
    text = (Path(__file__).parent / "solutions" / file).read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


CORRECT = solutions("right.txt")
WRONG = solutions("wrong.txt") | {"empty": "", "nul": "def find(xs):\0 return []"}


def graded(solution: str, tests=TESTS, entry: str = "find") -> float:
    return grade(textwrap.dedent(solution), tests, entry, place=PLACE)


@pytest.mark.parametrize("name", CORRECT)
def test_a_right_solution_passes_every_case(name: str):
    assert graded(CORRECT[name]) == 1.0


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_solution_passes_no_case(name: str):
    assert graded(WRONG[name]) == 0.0


def test_what_is_right_in_part_earns_its_share():
    assert graded("def find(xs): return [3]") == pytest.approx(1 / 3)  # knows the first case by heart
    assert graded("def find(xs): return [x for x in xs if x * x in xs]") == pytest.approx(2 / 3)  # not sorted
    assert graded("def find(xs): return [3] if 9 in xs else [2, 4] if 16 in xs else 1/0") == pytest.approx(
        2 / 3
    )


def test_nothing_of_one_case_is_there_in_the_next():
    remembers = """
        import os
        PLACES = ["/tmp/seen", "/work/seen", "/dev/shm/seen", "seen"]
        def find(n):
            seen = sum(os.path.exists(place) for place in PLACES)
            written = 0
            for place in PLACES:
                try:
                    written += open(place, "w").write("1")
                except OSError:
                    pass
            return [seen, written > 0]
    """
    tests = [[[n], [0, True]] for n in range(5)]
    assert grade(textwrap.dedent(remembers), tests, "find", place=PLACE, max_parallel=1) == 1.0


@pytest.mark.parametrize(
    ("expected", "given", "is_same"),
    [
        (1, 1, True),
        (1, True, False),
        (True, 1, False),
        (0, False, False),
        (1, 1.0, False),
        (1.0, 1, False),
        (0.5, 0.5, True),
        (0.3, 0.1 + 0.2, False),
        ("1", 1, False),
        (None, False, False),
        ([], None, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([[True]], [[1]], False),
        ({"a": [1], "b": None}, {"b": None, "a": [1]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"a": 1.0}, False),
        (10**30, 10**30, True),
        (float("nan"), float("nan"), False),
    ],
)
def test_equal_values_have_equal_types(expected, given, is_same: bool):
    assert same(expected, given) is is_same


def test_every_kind_of_value_comes_back_as_it_is():
    values = [
        None,
        True,
        0,
        -(10**40),
        2**63,
        1.5,
        -0.0,
        1e300,
        "",
        'é\0\n"\\ud800',
        [[], {}],
        {"": {"k": [None]}},
    ]
    assert grade("def same(x): return x", [[[value], value] for value in values], "same", place=PLACE) == 1.0
    assert (
        grade("def pair(x): return (x, (x,))", [[[(1, 2)], ((1, 2), ((1, 2),))]], "pair", place=PLACE) == 1.0
    )


@pytest.mark.parametrize(
    ("solution", "tests", "entry", "problem"),
    [
        (RIGHT, [], "find", "tests are .*expected a list of at least one"),
        (RIGHT, "tests", "find", "tests are 'tests'"),
        (RIGHT, [[[1], {2}]], "find", r"tests\[0\] is .*set is no value of JSON"),
        (RIGHT, [[[1], 1], [[1], float("nan")]], "find", r"tests\[1\] is"),
        (RIGHT, [[[1], {1: 2}]], "find", "JSON has str keys only"),
        (RIGHT, [[1, 1]], "find", r"tests\[0\] is \[1, 1\]; expected \[args, expected\], args a list"),
        (RIGHT, [[[1], 1, 2]], "find", r"expected \[args, expected\]"),
        (RIGHT, [[[1], 10**5000]], "find", r"tests\[0\] is"),
        (RIGHT, TESTS, "no name", "entry is 'no name'; expected the name of the function"),
        (RIGHT, TESTS, "def", "entry is 'def'"),
        (RIGHT, TESTS, None, "entry is None"),
        (None, TESTS, "find", "solution is a NoneType; expected the source"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(solution, tests, entry, problem: str):
    with pytest.raises(ValueError, match=problem):
        grade(solution, tests, entry)


async def test_a_case_says_why_it_failed():
    cases = make_cases([[[0], 1]])

    async def reason(solution: str) -> CaseResult:
        return (await grade_cases(solution, cases, "f", place=PLACE))[0]

    assert await reason("def f(x): return 1") == CaseResult(passed=True)
    assert (await reason("def f(x): return 2")).reason == "another value"
    assert (await reason("def f(x): return 1 / x")).reason == "raised ZeroDivisionError"
    assert (await reason("def g(x): return 1")).reason == "raised Undefined"
    assert (await reason("f = lambda x: {x}")).reason == "raised ValueError"
    assert (await reason("while True: pass")).reason == "timeout"
    assert (await reason("import os\nos._exit(3)")).reason == "nonzero"
    assert (await reason("import os\nos._exit(254)")).reason == "nonzero"  # the sandbox's own for "no start"


def test_a_level_that_cannot_be_had_is_no_grade():
    with pytest.raises(SandboxTooWeakError, match="no sandbox of level 4"):
        grade(RIGHT, TESTS, "find", place=Place(min_level=4))


async def test_a_world_that_fails_once_is_not_the_solutions_fault():
    """The launcher of all sandboxes is killed while a case runs; the case runs again in the next one."""
    slow = f"import time\ntime.sleep(3)\n{RIGHT}"
    place = Place(limits=Limits(wall_s=10))
    grading = asyncio.create_task(grade_async(slow, TESTS[:1], "find", place=place))
    await asyncio.sleep(1.5)
    os.kill(BUILT_IN[(await choose()).backend].launcher.pid, signal.SIGKILL)
    assert await grading == 1.0


def test_inside_an_event_loop_the_blocking_form_says_what_to_do():
    async def blocks() -> float:
        return grade(RIGHT, TESTS, "find")

    with pytest.raises(RuntimeError, match="await the async form"):
        asyncio.run(blocks())


async def test_the_async_form_gives_the_same():
    assert await grade_async(RIGHT, TESTS, "find", place=PLACE) == 1.0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Here:\n```python\na = 1\n```\nor\n``` py\nb = 2\n```\ndone", "b = 2\n"),
        ("```\nc\n```", "c\n"),
    ],
)
def test_the_last_fenced_block_is_the_code(text: str, code: str):
    assert code_in(text) == code


async def test_chance_in_a_graded_solution_is_the_tasks_own():
    solution = "import random\ndef f(): return random.random()"
    drawn = [[[], random.Random(7).random()]]
    task = Task(id="t", env="e", messages=(), seed=7, metadata={"tests": drawn, "entry": "f"})
    spoken = (message("assistant", solution),)
    assert (
        await code_tests(Episode(task=task, transcript=spoken, stop_reason=StopReason.ANSWERED))
    ).value == 1
    assert await grade_async(solution, drawn, "f") == 0.0


async def test_a_data_sets_tests_are_a_reward():
    def episode(text: str, **metadata) -> Episode:
        task = Task(id="t", env="e", messages=(message("user", "?"),), metadata=metadata)
        spoken = (*task.messages, message("assistant", text))
        return Episode(task=task, transcript=spoken, stop_reason=StopReason.ANSWERED)

    right = await code_tests(episode(f"So:\n```python\n{RIGHT}```", tests=TESTS, entry="find"))
    assert (right.value, right.success, right.parts) == (1.0, 1.0, {"tests": 1.0})
    partly = await code_tests(episode("def find(xs): return []", tests=TESTS, entry="find"))
    assert (partly.value, partly.success) == (pytest.approx(1 / 3), 0.0)
    with pytest.raises(ValueError, match="task t: metadata lacks tests and entry"):
        await code_tests(episode("x"))
