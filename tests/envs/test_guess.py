"""guess: what a reply says, who finds the secret, and how far luck goes."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from envs.check import check_env
from envs.episode import Episode
from envs.messages import Message, Task, message
from envs.play import play
from envs.registry import Player
from envs.splits import Split, task_seed
from envs.tasks.guess import ENV, LEVELS, GuessEnv, candidates, consistent_codes, reply_to, score

ROW = Task(
    id="t", env="guess", messages=(message("user", "abdefhk"),), answer="d", metadata={}, level=0, seed=0
)
CODE = replace(ROW, messages=(message("user", "3 of abcde"),), answer="abb", level=3)


def run(task: Task, player: Player) -> Episode:
    return asyncio.run(play(GuessEnv, task, player, max_turns=40))


def scripted(*texts: str) -> Player:
    return lambda task, transcript: texts[sum(m.role == "assistant" for m in transcript)]


def replies(episode: Episode) -> list[str]:
    return [m.text for m in episode.transcript if m.role == "tool"]


@pytest.mark.parametrize(("level", "num_seeds"), [(0, 16), (1, 8), (2, 6), (3, 6), (4, 3), (5, 1)])
def test_guess_keeps_the_contract(level: int, num_seeds: int):
    check_env(ENV, [level], num_seeds=num_seeds)


def test_an_episode_as_the_module_draws_it():
    episode = run(ROW, ENV.reference)
    assert replies(episode) == ["<", ">", "="]
    assert [m.tool_calls[0].text for m in episode.transcript if m.role == "assistant"] == [
        "ask e",
        "ask b",
        "ask d",
    ]
    assert score(episode).parts == {"found": 1.0, "asked": 3.0}


def test_questions_are_counted_and_what_is_no_candidate_is_not_one():
    texts = ("[ask b]", "[ask x]", "[ask ab]", "[ask b][ask b][ask d]")
    episode = run(ROW, scripted(*texts))
    no, out = "error: not a candidate", "error: no question is left"
    assert replies(episode) == [">", no, no, ">", ">", out]
    assert score(episode).value == 0.0


def test_after_the_secret_nothing_is_answered():
    episode = run(ROW, scripted("[ask d][ask b]"))
    assert replies(episode) == ["=", "error: no question is left"]
    assert score(episode).value == score(episode).success == 1.0


@pytest.mark.parametrize(
    ("asked", "reply"),
    [("abb", "="), ("bba", "1+2"), ("aaa", "1+0"), ("cde", "0+0"), ("bab", "1+2"), ("bcc", "0+1")],
)
def test_mastermind_replies_count_places_and_then_letters(asked: str, reply: str):
    assert reply_to(asked, "abb", None) == reply
    assert replies(run(CODE, scripted(f"[ask {asked}]", ""))) == [reply]


def test_the_search_for_consistent_codes_equals_its_definition():
    rng = random.Random(0)
    codes = ["".join(code) for code in product("abcd", repeat=3)]
    for _ in range(30):
        secret = rng.choice(codes)
        asked = [(guess, reply_to(guess, secret, None)) for guess in rng.sample(codes, 3) if guess != secret]
        expected = [c for c in codes if all(c != g and reply_to(g, c, None) == reply for g, reply in asked)]
        assert list(consistent_codes("abcd", 3, asked)) == expected


@pytest.mark.parametrize("level", [0, 1, 2])
def test_halving_finds_every_secret(level: int):
    task = ENV.make_task(level, 0)
    for secret in candidates(task.messages[-1].text, LEVELS[level].game):
        assert score(run(replace(task, answer=secret), ENV.reference)).value == 1.0, secret


def test_asking_consistently_finds_every_code_of_level_3():
    task = ENV.make_task(3, 0)
    for secret in product(candidates(task.messages[-1].text, "code"), repeat=3):
        assert score(run(replace(task, answer="".join(secret)), ENV.reference)).value == 1.0, secret


def random_player(task: Task, transcript: Sequence[Message]) -> str:
    """A candidate at random, whatever was said."""
    rng = random.Random(f"{task.id}/{len(transcript)}")
    shape = LEVELS[task.level or 0]
    choices = candidates(task.messages[-1].text, shape.game)
    return f"[ask {''.join(rng.choice(choices) for _ in range(shape.num_places))}]"


# Level 0: 1 - (6/7)^3 = 0.370; level 1: 1 - (14/15)^4 = 0.241; level 2: 1 - (126/127)^7 = 0.054;
# level 3: 1 - (124/125)^8 = 0.062. Of 1000 games: three standard deviations are 0.046 at most.
@pytest.mark.parametrize(("level", "expected"), [(0, 0.370), (1, 0.241), (2, 0.054), (3, 0.062)])
def test_a_random_player_finds_what_luck_gives(level: int, expected: float):
    tasks = [ENV.make_task(level, task_seed(Split.HELD_OUT, 0, index)) for index in range(1000)]
    found = sum(score(run(task, random_player)).value or 0.0 for task in tasks) / len(tasks)
    assert abs(found - expected) < 3 * (expected * (1 - expected) / 1000) ** 0.5


def test_the_prompt_says_nothing_of_the_secret():
    """The secret's place in the row is uniform: 7 places, 2100 tasks, 300 each, sd 16."""
    tasks = [ENV.make_task(0, seed) for seed in range(2100)]
    places = [task.messages[-1].text.index(task.answer or "") for task in tasks]
    assert all(240 < places.count(place) < 360 for place in range(7))


def test_held_out_prompts_are_not_trained_on():
    for level in ENV.levels:
        drawn = {
            split: {ENV.make_task(level, task_seed(split, 0, index)).messages for index in range(500)}
            for split in Split
        }
        assert drawn[Split.HELD_OUT].isdisjoint(drawn[Split.TRAIN] | drawn[Split.WARM_START])
        assert all(len(prompts) > (400 if level in (1, 3, 4, 5) else 100) for prompts in drawn.values())


def test_level_0_fits_the_recipe_and_the_alphabet():
    stated = ENV.lengths(0)
    assert (stated.turns, stated.turn_chars, stated.reply_chars, stated.prompt_chars) == (3, 7, 1, 7)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"unknown level of environment 'guess' '6' \(known: 0, 1, 2, 3"):
        ENV.make_task(6, 0)
