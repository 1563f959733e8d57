"""calc: what counts as solving it, who cannot, and that training never sees what is held out."""

import asyncio
import random
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest

from envs.episode import Episode
from envs.messages import Message, StopReason, Task, message
from envs.play import play
from envs.registry import Player
from envs.splits import Split, task_seed
from envs.tasks.calc import ENV, LEVELS, CalcEnv, score
from envs.tools import assistant_message

NUM_EPISODES = 2000


def scripted(*texts: str) -> Player:
    def player(task: Task, transcript: Sequence[Message]) -> str:
        return texts[sum(m.role == "assistant" for m in transcript)]

    return player


def task_of(*plan: tuple, level: int = 1) -> Task:
    answer = str(plan[-1][-1])
    return Task(
        id="t",
        env="calc",
        messages=(message("user", "?"),),
        answer=answer,
        metadata={"plan": plan},
        level=level,
        seed=0,
    )


TASK = task_of((12, "+", 34, 46), (46, "*", 5, 230))  # (12+34)*5


def run(task: Task, player: Player, max_turns: int = 12) -> Episode:
    return asyncio.run(play(CalcEnv, task, player, max_turns=max_turns))


def replies(episode: Episode) -> list[str]:
    return [m.text for m in episode.transcript if m.role == "tool"]


def test_an_episode_as_the_module_draws_it():
    task = ENV.make_task(1, 2)
    a, symbol, b, c = re.fullmatch(r"\((\d+)([-+*])(\d+)\)(.*)", task.messages[0].text).groups()
    first = str(eval(a + symbol + b))
    assert len(task.messages[0].text) <= 20
    episode = run(task, scripted(f"[calc {a}{symbol}{b}]", f"[calc {first}{c}]", task.answer))
    assert replies(episode) == [first, task.answer]
    assert task.answer == str(eval(task.messages[0].text))
    assert score(episode).value == score(episode).success == 1.0


def test_the_calculator_does_one_operation_a_call():
    episode = run(
        TASK,
        scripted(
            "[calc 1+2+3]", "[calc (12+34)]", "[calc 12/3]", "[calc -3 - -4]", "[calc 7]", "[est 1+2]", "no"
        ),
    )
    error = "error: one operation a call, like 12+34"
    assert replies(episode) == [error, error, error, "1", error, "error: est is off at this level"]


@pytest.mark.parametrize(
    ("texts", "value", "parts"),
    [
        (("[calc 12+34]", "[calc 46*5]", "230"), 1.0, {"answer": 1, "operations": 1}),
        (("[calc 34+12]", "[calc 5*46]", " 230\n"), 1.0, {"answer": 1, "operations": 1}),
        (
            ("[calc 9*9]", "[calc 12+34]", "[calc 12+34]", "[calc 46*5]", "230"),
            1.0,
            {"answer": 1, "operations": 1},
        ),
        (("[calc 12+34]", "[calc 46*5]", "231"), 0.0, {"answer": 0, "operations": 1}),
        (("[calc 12+34]", "[calc 46*5]", "0230"), 0.0, {"answer": 0, "operations": 1}),
        (("[calc 12+34]", "[calc 46*5]", "it is 230"), 0.0, {"answer": 0, "operations": 1}),
        (("[calc 12+34]", "230"), 0.0, {"answer": 1, "operations": 0.5}),
        (("[calc 46*5]", "230"), 0.0, {"answer": 1, "operations": 0}),  # 46 out of its head
        (("[calc 46*5]", "[calc 12+34]", "230"), 0.0, {"answer": 1, "operations": 0.5}),
        (("[calc 12+34][calc 46*5]", "230"), 0.0, {"answer": 1, "operations": 0.5}),  # 46 was not yet known
        (("[calc 229+1]", "230"), 0.0, {"answer": 1, "operations": 0}),
        (("230",), 0.0, {"answer": 1, "operations": 0}),
        (("",), 0.0, {"answer": 0, "operations": 0}),
    ],
)
def test_right_and_by_the_tool_or_nothing(texts, value, parts):
    scored = score(run(TASK, scripted(*texts)))
    assert (scored.value, scored.success, scored.parts) == (value, value, parts)


def test_an_answer_that_was_cut_off_is_none():
    episode = run(TASK, scripted("[calc 12+34]", "[calc 46*5]", "230"))
    cut = Episode(
        task=TASK,
        transcript=episode.transcript,
        stop_reason=StopReason.MAX_TURN_TOKENS,
        final_state=episode.final_state,
    )
    assert score(cut).value == 0.0


def test_subtraction_is_not_commutative():
    task = task_of((34, "-", 12, 22), (22, "*", 5, 110))
    assert score(run(task, scripted("[calc 34-12]", "[calc 22*5]", "110"))).value == 1.0
    assert score(run(task, scripted("[calc 12-34]", "110"))).parts == {"answer": 1, "operations": 0}


@pytest.mark.parametrize("level", ENV.levels)
def test_the_reference_player_solves_200_tasks_of_each_split(level):
    for split in (Split.TRAIN, Split.HELD_OUT):
        for index in range(200):
            task = ENV.make_task(level, task_seed(split, 0, index))
            assert int(task.answer) == eval(task.messages[0].text)
            episode = run(task, ENV.reference, ENV.lengths(level).turns)
            assert score(episode).value == 1.0, task


def test_a_tenth_of_the_calls_at_level_5_meet_a_fault_and_a_retry_mends_it():
    texts = [
        [m.text for m in run(ENV.make_task(5, seed), ENV.reference).transcript if m.role == "tool"]
        for seed in range(400)
    ]
    num_busy = sum(text == "error: busy, try again" for episode in texts for text in episode)
    # Of 400 * 5 first attempts one in ten fails, no retry does: 200 faults, sd sqrt(2000 * 0.1 * 0.9) = 13.
    assert 160 < num_busy < 240
    for episode in texts:
        assert all("busy" not in b for a, b in pairwise(episode) if "busy" in a)


def test_the_estimator_answers_from_level_4_on_and_is_rounded():
    task = task_of((12, "+", 34, 46), level=4)
    assert replies(run(task, scripted("[est 12+34]", "[est 97*5]", "[est 3-50]", ""))) == ["50", "500", "-50"]


def test_each_split_has_ten_thousand_level_1_tasks_and_held_out_meets_none():
    drawn = {
        split: {ENV.make_task(1, task_seed(split, 0, index)).messages[0].text for index in range(12_000)}
        for split in Split
    }
    assert all(len(expressions) >= 10_000 for expressions in drawn.values())
    trained = drawn[Split.TRAIN] | drawn[Split.WARM_START]

    def swapped(expression: str) -> set[str]:
        """The same expression with the operands of its sum or product exchanged."""
        a, symbol, b, rest = re.fullmatch(r"\((\d+)([-+*])(\d+)\)(.*)", expression).groups()
        return {expression} | ({f"({b}{symbol}{a}){rest}"} if symbol in "+*" else set())

    assert trained.isdisjoint(other for expression in drawn[Split.HELD_OUT] for other in swapped(expression))


def test_no_value_can_be_copied():
    for level in ENV.levels:
        for index in range(300):
            task = ENV.make_task(level, task_seed(Split.TRAIN, 1, index))
            written = [int(digits) for digits in re.findall(r"\d+", task.messages[0].text)]
            values = [step[-1] for step in task.metadata["plan"]]
            assert not set(written) & set(values)
            assert len(set(values)) == len(values) == LEVELS[level].num_operations
            assert all(0 <= value <= 99_999 for value in values)


def random_calls(task: Task, transcript: Sequence[Message], *, with_results: bool) -> str:
    """Two random calls on numbers it sees, then the last result: all of the form, none of the meaning."""
    rng = random.Random(f"{task.id}/{len(transcript)}")
    numbers = re.findall(r"\d+", task.messages[0].text)
    results = [m.text for m in transcript if m.role == "tool"]
    if len(results) == 2:
        return results[-1]
    a, b = rng.sample(numbers + results if with_results else numbers, 2)
    return f"[calc {a}{rng.choice('+-*')}{b}]"


COPYING: dict[str, Player] = {
    "any number of the prompt": lambda task, _: random.Random(task.id).choice(
        re.findall(r"\d+", task.messages[0].text)
    ),
    "random digits": lambda task, _: str(random.Random(task.id).randrange(1000)),
    "echo": lambda task, _: task.messages[0].text,
    "random calls on the prompt": lambda *seen: random_calls(*seen, with_results=False),
    "random calls on all that it sees": lambda *seen: random_calls(*seen, with_results=True),
}


@pytest.mark.parametrize("name", COPYING)
def test_copying_and_random_players_succeed_on_less_than_one_percent(name):
    async def play_all() -> list[Episode]:
        tasks = [ENV.make_task(1, task_seed(Split.HELD_OUT, 0, index)) for index in range(NUM_EPISODES)]
        return [await play(CalcEnv, task, COPYING[name], max_turns=3) for task in tasks]

    num_solved = sum(score(episode).value for episode in asyncio.run(play_all()))
    assert num_solved < 0.01 * NUM_EPISODES


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"unknown level of environment 'calc' '6' \(known: 1, 2, 3, 4, 5\)"):
        ENV.make_task(6, 0)


def test_the_reference_player_notices_a_world_that_answers_wrongly():
    wrong = (message("tool", "47"),)
    with pytest.raises(ValueError, match=r"\[calc 12\+34\] gave 47, expected 46"):
        ENV.reference(TASK, wrong)


@pytest.mark.parametrize(
    ("texts", "rewards"),
    [
        (("[calc 12+34]", "[calc 46*5]", "230"), [0.5, 0.5, 0.0]),
        (
            ("[calc 9*9]", "[calc 12+34]", "[calc 34+12]", "[calc 46*5]"),
            [0.0, 0.5, 0.0, 0.5],
        ),  # new ones only
        (("[calc 46*5]", "[calc 12+34]", "[calc 46*5]"), [0.0, 0.5, 0.5]),  # 46 was not yet known
        (("[calc 12+34][calc 46*5]", "[calc 46*5]"), [0.5, 0.5]),
    ],
)
def test_a_turn_is_rewarded_for_the_operations_that_it_was_the_first_to_have_computed(texts, rewards):
    async def turns() -> list[float]:
        env = CalcEnv()
        await env.reset(TASK)
        return [(await env.step(assistant_message(text, env.tools))).reward for text in texts]

    assert asyncio.run(turns()) == rewards
