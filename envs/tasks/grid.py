"""grid: walk to the goal on a small map, one move a turn.

    user       @.O
               .O.
               ..G
    assistant  [go d]
    tool       ..O
               @O.
               ..G
    ...
    assistant  [go r]
    tool       goal

`@` is the agent, `G` the goal, `O` a hole (falling in ends the episode), `#` a wall (bumping costs a turn),
`a` a key and `A` the door that it opens. Higher levels are fogged: only the surroundings of the agent are
shown, and what lies beyond must be remembered. Every map can be solved: its shortest path was searched.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from envs.episode import Episode, Score
from envs.messages import Message, Task, message
from envs.names import unknown_name
from envs.registry import EnvDefinition, Lengths, Player
from envs.splits import Split, is_held_out, split_of
from envs.tool_env import ToolEnv
from envs.tools import ToolError, tool

MOVES: Mapping[str, tuple[int, int]] = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
KEYS = "ab"  # the door of key a is A
GOAL, HOLE, WALL, FLOOR, AGENT = "GO#.@"

Rows = Sequence[str]
State = tuple[int, int, str]
"""Row and column of the agent, and the keys that it holds, in alphabetical order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard: the map, the length of its shortest path, and how much of it is seen."""

    size: int
    num_holes: int = 0
    num_walls: int = 0
    num_doors: int = 0  # each in a wall across the map, with its key on the near side
    shortest: tuple[int, int]  # moves of the shortest path, both ends included
    max_turns: int
    sight: int | None = None  # cells seen in each direction; None: the whole map


LEVELS: Mapping[int, Level] = {
    0: Level(size=3, num_holes=3, shortest=(2, 3), max_turns=4),
    1: Level(size=4, num_holes=4, shortest=(3, 6), max_turns=10),
    2: Level(size=6, num_holes=5, num_walls=6, shortest=(6, 12), max_turns=20),
    3: Level(size=8, num_holes=6, num_walls=6, num_doors=1, shortest=(10, 24), max_turns=40),
    4: Level(size=10, num_holes=8, num_walls=8, num_doors=1, shortest=(14, 36), max_turns=100, sight=2),
    5: Level(size=12, num_holes=10, num_walls=10, num_doors=2, shortest=(24, 60), max_turns=200, sight=2),
}


def _level(level: int | None) -> Level:
    if level is None or level not in LEVELS:
        raise ValueError(unknown_name("level of environment 'grid'", level, LEVELS))
    return LEVELS[level]


def make_task(level: int, seed: int) -> Task:
    """The task of (level, seed). `metadata` has the map, `rows`, and a shortest path, `plan`: "rrd".

    What is held out is decided by what the agent sees first, the whole map where there is no fog.
    """
    shape = _level(level)
    held_out = split_of(seed) is Split.HELD_OUT
    rng = random.Random(f"grid/{level}/{seed}")
    low, high = shape.shortest
    while True:
        rows = _draw_map(rng, shape)
        opening = view(rows, start_of(rows), shape.sight)
        if is_held_out(opening) != held_out:
            continue
        plan = shortest_path(rows, start_of(rows))
        if plan is not None and low <= len(plan) <= high:
            break
    return Task(
        id=f"grid-{level}-{seed}",
        env="grid",
        messages=(message("user", opening),),
        metadata={"rows": rows, "plan": plan},
        level=level,
        seed=seed,
    )


def _draw_map(rng: random.Random, shape: Level) -> list[str]:
    """A map of `shape`, which may be unsolvable: rooms side by side, a key in each but the last."""
    cells = [[FLOOR] * shape.size for _ in range(shape.size)]
    doors = KEYS[: shape.num_doors]
    walls = [(index + 1) * shape.size // (shape.num_doors + 1) for index in range(shape.num_doors)]
    for key, column in zip(doors, walls, strict=True):
        for row in cells:
            row[column] = WALL
        cells[rng.randrange(shape.size)][column] = key.upper()
    rooms = [(left + 1, right) for left, right in pairwise([-1, *walls, shape.size])]
    _place(rng, cells, AGENT, *rooms[0])
    _place(rng, cells, GOAL, *rooms[-1])
    for key, room in zip(doors, rooms, strict=False):
        _place(rng, cells, key, *room)
    for thing in HOLE * shape.num_holes + WALL * shape.num_walls:
        _place(rng, cells, thing, 0, shape.size)
    rows = ["".join(row) for row in cells]
    if rng.random() < 0.5:  # rooms one below the other
        rows = ["".join(column) for column in zip(*rows, strict=True)]
    return rows[::-1] if rng.random() < 0.5 else rows


def _place(rng: random.Random, cells: list[list[str]], thing: str, left: int, right: int) -> None:
    """Put `thing` on a floor cell between two columns, the right one excluded."""
    free = [(r, c) for r, row in enumerate(cells) for c in range(left, right) if row[c] == FLOOR]
    row, column = rng.choice(free)
    cells[row][column] = thing


def start_of(rows: Rows) -> State:
    """Where the agent stands at first."""
    return next((r, row.index(AGENT), "") for r, row in enumerate(rows) if AGENT in row)


def after(rows: Rows, state: State, move: str) -> State:
    """The state after `move`; the same one where the way is blocked."""
    row, column, keys = state
    row, column = row + MOVES[move][0], column + MOVES[move][1]
    if not (0 <= row < len(rows) and 0 <= column < len(rows)):
        return state
    cell = rows[row][column]
    if cell == WALL or (cell.lower() in KEYS and cell.isupper() and cell.lower() not in keys):
        return state
    return row, column, "".join(sorted({*keys, cell})) if cell in KEYS else keys


def shortest_path(rows: Rows, start: State) -> str | None:
    """The moves of a shortest path to the goal that meets no hole, the first in the order of MOVES."""
    came_by: dict[State, str] = {start: ""}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if rows[state[0]][state[1]] == GOAL:
            return came_by[state]
        for move in MOVES:
            following = after(rows, state, move)
            if following not in came_by and rows[following[0]][following[1]] != HOLE:
                came_by[following] = came_by[state] + move
                waiting.append(following)
    return None


def view(rows: Rows, state: State, sight: int | None) -> str:
    """What the agent sees: used keys, opened doors and its first cell are floor, beyond the edge is wall."""
    here_row, here_column, keys = state
    seen_rows = range(len(rows)) if sight is None else range(here_row - sight, here_row + sight + 1)
    seen_columns = range(len(rows)) if sight is None else range(here_column - sight, here_column + sight + 1)

    def cell(row: int, column: int) -> str:
        if (row, column) == (here_row, here_column):
            return AGENT
        if not (0 <= row < len(rows) and 0 <= column < len(rows)):
            return WALL
        found = rows[row][column]
        return FLOOR if found == AGENT or found.lower() in keys else found

    return "\n".join("".join(cell(row, column) for column in seen_columns) for row in seen_rows)


class GridEnv(ToolEnv):
    """Offers `go`. The episode ends at the goal, in a hole, or after the level's turns."""

    async def setup(self) -> None:
        self.level = _level(self.task.level)
        self.rows: Rows = self.task.metadata["rows"]
        self.state = start_of(self.rows)
        self.moved_in = -1  # the turn of the last move
        self.nearest = len(self.task.metadata["plan"])  # moves to the goal from the best place so far

    @property
    def cell(self) -> str:
        """What the agent stands on."""
        return self.rows[self.state[0]][self.state[1]]

    @tool
    def go(self, move: str) -> str:
        """Move one cell: u (up), d (down), l (left) or r (right)."""
        if move not in MOVES:
            raise ToolError("move u, d, l or r")
        if self.moved_in == self.turn:
            raise ToolError("one move a turn")
        self.moved_in = self.turn
        self.state = after(self.rows, self.state, move)
        return {GOAL: "goal", HOLE: "fell"}.get(self.cell) or view(self.rows, self.state, self.level.sight)

    def is_over(self) -> bool:
        return self.cell in (GOAL, HOLE) or self.turn + 1 >= self.level.max_turns

    def final_state(self) -> Mapping[str, Any]:
        return {"cell": self.cell}

    def turn_reward(self) -> float:
        """The share of the shortest path by which this turn came nearer to the goal than any before it."""
        path = None if self.cell == HOLE else shortest_path(self.rows, self.state)
        gain = 0 if path is None else max(0, self.nearest - len(path))
        self.nearest -= gain
        return gain / len(self.task.metadata["plan"])


def score(episode: Episode) -> Score:
    """1.0 when the agent stands on the goal, else 0.0."""
    cell = episode.final_state["cell"]
    success = float(cell == GOAL)
    return Score(value=success, success=success, parts={"goal": success, "fell": float(cell == HOLE)})


def reference(task: Task, transcript: Sequence[Message]) -> str:
    """Follows the plan; under fog too, so it knows more there than the agent can."""
    num_spoken = sum(spoken.role == "assistant" for spoken in transcript)
    if num_spoken >= len(task.metadata["plan"]):
        raise ValueError(f"{task.id}: not at the goal after the plan {task.metadata['plan']!r}")
    return f"[go {task.metadata['plan'][num_spoken]}]"


def lengths(level: int) -> Lengths:
    """Bounds from the level's numbers: a view of w x w cells has w line ends less one."""
    shape = _level(level)
    width = shape.size if shape.sight is None else 2 * shape.sight + 1
    chars = width * width + width - 1
    return Lengths(prompt_chars=chars, turns=shape.shortest[1], turn_chars=len("[go r]"), reply_chars=chars)


HACKS: Mapping[str, Player] = {
    "says_goal": lambda task, _: "goal",
    "says_the_plan": lambda task, _: task.metadata["plan"],
    "plan_in_one_call": lambda task, _: f"[go {task.metadata['plan']}]",
    "plan_in_one_turn": lambda task, transcript: (
        "goal" if len(transcript) > 1 else "".join(f"[go {move}]" for move in task.metadata["plan"])
    ),
    "all_but_the_last": lambda task, transcript: (
        "goal"
        if (num_spoken := sum(m.role == "assistant" for m in transcript)) == len(task.metadata["plan"]) - 1
        else f"[go {task.metadata['plan'][num_spoken]}]"
    ),
    "jumps": lambda task, _: "[go G]",
    "unclosed_calls": lambda task, _: f"[go {task.metadata['plan'][0]}",
    "paces": lambda task, transcript: f"[go {'ud'[len(transcript) // 2 % 2]}]",
    "echo": lambda task, _: task.messages[-1].text,
}

ENV = EnvDefinition(
    name="grid",
    make_env=GridEnv,
    make_task=make_task,
    levels=tuple(LEVELS),
    score=score,
    reference=reference,
    lengths=lengths,
    hacks=HACKS,
)
