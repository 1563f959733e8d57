"""coding: programs are run on hidden inputs in a sandbox, and nothing but what they compute counts."""

import asyncio
import random
from dataclasses import replace

import pytest

from envs.check import check_env
from envs.episode import Episode, Score
from envs.messages import StopReason, Task
from envs.play import play
from envs.sandbox.base import Limits
from envs.sandbox.grading import Place, grade_cases
from envs.splits import Split, task_seed
from envs.tasks import coding
from envs.tasks._coding_tasks import LEVELS, MAX_VALUE, OPERATIONS, apply, hidden_tests, program
from envs.tasks.coding import ENV, CodingEnv, score
from envs.tools import ToolError


def playing(level: int, *said: str, seed: int = 0) -> Episode:
    """An episode in which these texts are said, the last one again and again."""
    task = ENV.make_task(level, seed)
    words = iter(said)

    def player(task, transcript) -> str:
        return next(words, said[-1])

    return asyncio.run(play(CodingEnv, task, player, max_turns=4))


def scored(episode: Episode) -> Score:
    return asyncio.run(score(episode))


@pytest.mark.parametrize("level", ENV.levels)
def test_coding_keeps_the_contract(level: int):
    check_env(ENV, [level], num_seeds={0: 4, 4: 1, 5: 1}.get(level, 2))


@pytest.mark.parametrize("level", ENV.levels)
def test_a_solution_computes_what_the_operations_do(level: int):
    """Our own programs, on inputs that are neither shown nor hidden; run here, since we wrote them."""
    for seed in range(30):
        task = ENV.make_task(level, seed)
        assert task.answer == program(task.metadata["plan"])
        space: dict = {}
        exec(task.answer, space)
        for x in [[], [4], [3, 3, -2, 8]] if LEVELS[level].has_lists else [-7, 0, 1, 64]:
            assert space["f"](x) == apply(task.metadata["plan"], x), task.answer


def test_every_operation_is_what_its_phrase_says():
    numbers = {"add": 11, "subtract": 3, "times": 28, "from": -3, "modulo": 3, "at_most": 4, "at_least": 7}
    numbers |= {"absolute": 7, "square": 49}
    x = [5, 2, 2, -4]
    lists = {
        "add_each": [9, 6, 6, 0],
        "times_each": [20, 8, 8, -16],
        "modulo_each": [1, 2, 2, 0],
        "even": [2, 2, -4],
        "above": [5],
        "skip": [],
        "first": [5, 2, 2, -4],
        "reverse": [-4, 2, 2, 5],
        "sort": [-4, 2, 2, 5],
        "unique": [5, 2, -4],
        "sums": [5, 7, 9, 5],
        "gaps": [-3, 0, -6],
        "sum": 5,
        "count": 4,
        "largest": 5,
    }
    assert {name: OPERATIONS[name].apply(7, 4) for name in numbers} == numbers
    assert {name: OPERATIONS[name].apply(x, 4) for name in lists} == lists
    assert numbers.keys() | lists.keys() == OPERATIONS.keys()
    assert OPERATIONS["largest"].apply([], 0) == 0


@pytest.mark.parametrize("level", ENV.levels)
def test_hidden_tests_are_in_no_message_and_in_no_record(level: int):
    for seed in range(30):
        task = ENV.make_task(level, seed)
        tests = hidden_tests(task)
        assert len(tests) == LEVELS[level].num_tests
        assert hidden_tests(task) == tests
        for args, expected in tests:
            assert expected == apply(task.metadata["plan"], args[0])
            assert args[0] not in [x for x, _ in task.metadata["examples"]]
        assert len({str(expected) for _, expected in tests}) > len(tests) / 2
        numbers = [v for _, y in tests for v in (y if isinstance(y, list) else [y])]
        assert max(map(abs, numbers), default=0) <= MAX_VALUE


@pytest.mark.parametrize("level", ENV.levels)
def test_leaving_out_an_operation_is_seen_by_a_hidden_test(level: int):
    for seed in range(30):
        task = ENV.make_task(level, seed)
        plan = task.metadata["plan"]
        for left_out in range(len(plan)):
            shorter = [*plan[:left_out], *plan[left_out + 1 :]]
            assert any(apply(shorter, args[0]) != expected for args, expected in hidden_tests(task))


@pytest.mark.parametrize("level", [0, 1, 3])
def test_held_out_functions_are_not_trained_on_in_other_words(level: int):
    rng = random.Random(0)
    lists = [[rng.randint(-9, 20) for _ in range(rng.randint(0, 9))] for _ in range(100)]
    probes = lists if LEVELS[level].has_lists else range(-50, 150, 7)

    def drawn(split: Split) -> set[str]:
        """What each function does, in full: two plans that do the same are one."""
        tasks = (ENV.make_task(level, task_seed(split, 0, index)) for index in range(400))
        return {str([apply(task.metadata["plan"], x) for x in probes]) for task in tasks}

    train, warm_start, held_out = (drawn(split) for split in Split)
    assert held_out.isdisjoint(train | warm_start)
    assert min(map(len, (train, warm_start, held_out))) > 50


def test_level_0_is_short_and_of_few_characters():
    tasks = [ENV.make_task(0, seed) for seed in range(500)]
    assert max(len(task.messages[0].text) for task in tasks) <= 48
    said = {character for task in tasks for character in task.messages[0].text + str(task.answer)}
    assert said <= set("abcdefghijklmnopqrstuvwxyz0123456789 ;:()=+-*")


@pytest.mark.parametrize("level", ENV.levels)
def test_stated_lengths_are_bounds_and_no_wide_ones(level: int):
    tasks = [ENV.make_task(level, seed) for seed in range(200)]
    stated = ENV.lengths(level)
    longest = max(len(task.messages[0].text) for task in tasks)
    assert longest <= stated.prompt_chars <= 2 * longest
    assert max(len(str(task.answer)) for task in tasks) <= stated.turn_chars


def test_a_right_program_may_be_said_or_submitted_in_any_words():
    task = ENV.make_task(0, 0)
    other = f"{task.answer}\ng=f\nf=lambda y:g(y)+0"
    for said in (str(task.answer), f"```python\n{task.answer}\n```", f"[submit {task.answer}]", other):
        assert scored(playing(0, said)) == Score(value=1.0, success=1.0, parts={"tests": 1.0}), said


def test_a_program_that_is_right_in_part_earns_nothing_but_its_share_is_told():
    task = ENV.make_task(1, 0)
    [args, expected], *_ = hidden_tests(task)
    got = scored(playing(1, f"def f(x):return {expected} if x=={args[0]} else None"))
    assert (got.value, got.success, got.parts) == (0.0, 0.0, {"tests": pytest.approx(1 / 3)})


def test_an_answer_that_was_cut_off_is_none():
    episode = playing(0, str(ENV.make_task(0, 0).answer))
    assert scored(replace(episode, stop_reason=StopReason.MAX_TURN_TOKENS)).value == 0.0


def test_programs_are_tried_in_the_episodes_own_sandbox_and_graded_in_another():
    task = ENV.make_task(2, 0)
    leaves = "[run open('help.py','w').write('SEEN = 1')\nprint('saved')]"
    finds = "[run import help\nprint(help.SEEN)]"
    cheats = f"[submit import help\n{task.answer}]"
    episode = playing(2, leaves, finds, cheats)
    replies = [reply.text for reply in episode.transcript if reply.role == "tool"]
    assert replies == ["saved", "1", "submitted"]
    assert scored(episode).value == 0.0  # what it had saved is not there
    assert scored(playing(2, leaves, f"[submit {task.answer}]")).value == 1.0


def test_chance_in_a_program_is_the_tasks_own():
    draws = "[run import random\nprint(random.random())]"
    for seed in (3, 4):
        replies = [m.text for m in playing(2, draws, "done", seed=seed).transcript if m.role == "tool"]
        task_seed = ENV.make_task(2, seed).seed
        assert replies == [str(random.Random(task_seed).random())]


def test_what_goes_wrong_in_a_run_is_told():
    episode = playing(
        2,
        "[run print(1)\n1/0]",
        "[run import os, signal\nprint(2, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)]",
        "[run x = 1]",
        "done",
    )
    first, second, third = [reply.text for reply in episode.transcript if reply.role == "tool"]
    assert first.startswith("1\nTraceback")
    assert first.endswith("ZeroDivisionError: division by zero")
    assert second == "2\nstopped: signal"
    assert third == "it printed nothing"


async def test_run_is_off_below_level_2():
    env = CodingEnv()
    await env.reset(ENV.make_task(1, 0))
    with pytest.raises(ToolError, match="run is off at this level"):
        await env.run(program="print(1)")
    await env.close()


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"unknown level of environment 'coding' '9' \(known: 0, 1, 2, 3"):
        ENV.make_task(9, 0)


def test_a_task_is_what_its_level_and_seed_say():
    task: Task = ENV.make_task(0, 3)
    assert task == ENV.make_task(0, 3)
    assert task.id == "coding-0-3"


def test_a_program_is_run_once_a_task_and_one_that_ran_out_of_time_again(monkeypatch):
    calls = []

    async def counted(submitted, cases, entry, place):
        calls.append(submitted)
        return await grade_cases(submitted, cases, entry, place=Place(limits=Limits(wall_s=0.5)))

    monkeypatch.setattr(coding, "grade_cases", counted)
    right, slow = str(ENV.make_task(0, 5).answer), "def f(x):\n while 1: pass"
    first, again = (scored(playing(0, right, seed=5)) for _ in range(2))
    assert first == again == Score(value=1.0, success=1.0, parts={"tests": 1.0})
    assert scored(playing(0, right, seed=6)).value == 0  # another task's program is not this one's
    for _ in range(2):
        assert scored(playing(0, f"[submit {slow}]", seed=5)).value == 0
    assert calls == [right, right, slow, slow]
