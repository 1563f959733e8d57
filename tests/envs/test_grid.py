"""grid: every map can be solved, what a move does, what fog hides, and how far luck goes."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from envs.check import check_env
from envs.episode import Episode
from envs.messages import Message, Task, message
from envs.play import play
from envs.registry import Player
from envs.splits import Split, task_seed
from envs.tasks.grid import ENV, LEVELS, GridEnv, score, shortest_path, start_of, view
from envs.tools import assistant_message


def task_of(*rows: str, plan: str, level: int = 0) -> Task:
    opening = message("user", "\n".join(rows))
    metadata = {"rows": list(rows), "plan": plan}
    return Task(id="t", env="grid", messages=(opening,), metadata=metadata, level=level, seed=0)


LAKE = task_of("@.O", ".O.", "..G", plan="ddrr", level=1)


def run(task: Task, player: Player, max_turns: int = 200) -> Episode:
    return asyncio.run(play(GridEnv, task, player, max_turns=max_turns))


def moves(*words: str) -> Player:
    def player(task: Task, transcript: Sequence[Message]) -> str:
        num_spoken = sum(m.role == "assistant" for m in transcript)
        return f"[go {words[num_spoken]}]" if num_spoken < len(words) else "I stop"

    return player


def replies(episode: Episode) -> list[str]:
    return [m.text for m in episode.transcript if m.role == "tool"]


@pytest.mark.parametrize(("level", "num_seeds"), [(0, 16), (1, 12), (2, 8), (3, 5), (4, 4), (5, 3)])
def test_grid_keeps_the_contract(level: int, num_seeds: int):
    check_env(ENV, [level], num_seeds=num_seeds)


def test_an_episode_as_the_module_draws_it():
    episode = run(LAKE, ENV.reference)
    assert replies(episode) == ["..O\n@O.\n..G", "..O\n.O.\n@.G", "..O\n.O.\n.@G", "goal"]
    assert (score(episode).value, score(episode).parts) == (1.0, {"goal": 1.0, "fell": 0.0})


def test_a_hole_ends_the_episode():
    episode = run(LAKE, moves("r", "r", "d", "d"))
    assert replies(episode) == [".@O\n.O.\n..G", "fell"]
    assert (score(episode).value, score(episode).parts) == (0.0, {"goal": 0.0, "fell": 1.0})


def test_walls_and_the_edge_block_and_a_wrong_word_is_told():
    task = task_of("@#.", "...", "..G", plan="drrd")
    episode = run(task, moves("u", "r", "up", "d"))
    assert replies(episode)[:2] == ["@#.\n...\n..G"] * 2
    assert replies(episode)[2] == "error: move u, d, l or r"
    assert replies(episode)[3] == ".#.\n@..\n..G"


def test_a_turn_is_one_move():
    episode = run(LAKE, lambda task, seen: "[go d][go d]" if len(seen) == 1 else "")
    assert replies(episode) == ["..O\n@O.\n..G", "error: one move a turn"]


def test_turns_run_out():
    episode = run(LAKE, moves(*"ud" * 9))
    assert len(replies(episode)) == LEVELS[1].max_turns
    assert score(episode).value == 0.0


def test_a_door_opens_to_its_key_alone():
    task = task_of("a@Ab", "###B", "###G", "####", plan="lrrrdd", level=3)
    rows = task.metadata["rows"]
    assert shortest_path(rows, start_of(rows)) == task.metadata["plan"]
    assert replies(run(task, moves("r"))) == ["a@Ab\n###B\n###G\n####"]
    with_key = replies(run(task, moves(*"lrrr")))
    assert with_key[2:] == ["..@b\n###B\n###G\n####", "...@\n###.\n###G\n####"]
    assert score(run(task, moves(*"lrrrdd"))).value == 1.0


def test_fog_shows_the_surroundings_and_walls_beyond_the_edge():
    rows = ["@....", ".O...", "....G", ".....", "....."]
    assert view(rows, (0, 0, ""), 1) == "###\n#@.\n#.O"
    assert view(rows, (2, 3, ""), 1) == "...\n.@G\n..."
    assert view(rows, (4, 4, ""), None) == ".....\n.O...\n....G\n.....\n....@"


def solvable_in(rows: Sequence[str], num_moves: int) -> bool:
    """Whether the goal can be reached: every state after each number of moves, by the rules as written."""
    start = next((r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == "@")
    states = {(*start, frozenset[str]())}
    for _ in range(num_moves):
        following = set(states)
        for r, c, keys in states:
            for i, j in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                cell = rows[i][j] if 0 <= i < len(rows) and 0 <= j < len(rows) else "#"
                if cell not in "#O" and not (cell in "AB" and cell.lower() not in keys):
                    following.add((i, j, keys | {cell} if cell in "ab" else keys))
        states = following
    return any(rows[r][c] == "G" for r, c, _ in states)


@pytest.mark.parametrize("level", ENV.levels)
def test_every_map_can_be_solved_and_in_no_fewer_moves_than_the_plan(level: int):
    low, high = LEVELS[level].shortest
    for seed in range(40 if level < 3 else 8):
        task = ENV.make_task(level, seed)
        rows, length = task.metadata["rows"], len(task.metadata["plan"])
        assert low <= length <= high
        assert solvable_in(rows, length)
        assert not solvable_in(rows, length - 1)
        shape, cells = LEVELS[level], "".join(rows)
        assert (cells.count("O"), cells.count("@"), cells.count("G")) == (shape.num_holes, 1, 1)
        assert all(cells.count(key) == (key in "ab"[: shape.num_doors]) for key in "ab")


def test_doors_stand_in_the_way():
    """Without its keys no map of a level with doors can be solved."""
    for level in (3, 4, 5):
        for seed in range(20):
            rows = [
                row.replace("a", ".").replace("b", ".") for row in ENV.make_task(level, seed).metadata["rows"]
            ]
            assert shortest_path(rows, start_of(rows)) is None


def random_player(task: Task, transcript: Sequence[Message]) -> str:
    return f"[go {random.Random(f'{task.id}/{len(transcript)}').choice('udlr')}]"


@pytest.mark.parametrize(
    ("level", "num_tasks", "at_most"), [(0, 600, 0.13), (1, 300, 0.06), (2, 200, 0.03), (3, 100, 0.03)]
)
def test_a_random_player_seldom_arrives(level: int, num_tasks: int, at_most: float):
    tasks = [ENV.make_task(level, task_seed(Split.HELD_OUT, 0, index)) for index in range(num_tasks)]
    arrived = sum(score(run(task, random_player)).value or 0.0 for task in tasks) / num_tasks
    assert arrived <= at_most
    assert level > 0 or arrived > 0.03, "the random player does not move"


def test_held_out_maps_are_not_trained_on():
    for level in (0, 2, 4):
        drawn = {
            split: {ENV.make_task(level, task_seed(split, 0, index)).messages for index in range(300)}
            for split in Split
        }
        assert drawn[Split.HELD_OUT].isdisjoint(drawn[Split.TRAIN] | drawn[Split.WARM_START])
        assert all(len(maps) > 100 for maps in drawn.values())


@pytest.mark.parametrize(
    ("words", "rewards"),
    [
        ("ddrr", [0.25, 0.25, 0.25, 0.25]),
        ("dudd", [0.25, 0.0, 0.0, 0.25]),  # only what is nearer than ever before
        ("rr", [0.0, 0.0]),  # a dead end, and the hole behind it
    ],
)
def test_a_turn_is_rewarded_for_coming_nearer_than_before(words: str, rewards: list[float]):
    async def turns() -> list[float]:
        env = GridEnv()
        await env.reset(LAKE)
        return [(await env.step(assistant_message(f"[go {word}]", env.tools))).reward for word in words]

    assert asyncio.run(turns()) == rewards


def test_the_reference_player_notices_a_world_that_goes_otherwise():
    with pytest.raises(ValueError, match="not at the goal after the plan 'ddrr'"):
        run(
            replace(LAKE, metadata={**LAKE.metadata, "rows": ["@...", "....", "....", "...G"]}), ENV.reference
        )


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"unknown level of environment 'grid' '6' \(known: 0, 1, 2, 3"):
        ENV.make_task(6, 0)
