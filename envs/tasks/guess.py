"""guess: find a secret by asking, in fewer questions than there are candidates.

    user       abdefhk            which of these letters is it?
    assistant  [ask e]
    tool       <                  an earlier one than e
    assistant  [ask b]
    tool       >
    assistant  [ask d]
    tool       =

Three games. `row`: one of the letters shown, in the order of the alphabet. `range`: a number between two,
both included. `code`: Mastermind with the letters shown; a reply 1+2 says that one letter stands in its place
and two more belong elsewhere. The secret is drawn anew for every task, so the prompt says nothing of it: the
only way to it is to ask well and to remember what was said. Success is the reply =; an answer in words is
none.
"""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from envs.episode import Episode, Score
from envs.messages import Message, Task, message
from envs.names import unknown_name
from envs.registry import EnvDefinition, Lengths, Player
from envs.splits import Split, is_held_out, split_of
from envs.tool_env import ToolEnv
from envs.tools import ToolError, tool

FOUND, LEFT, RIGHT = "=<>"

Asked = Sequence[tuple[str, str]]
"""The questions that were answered, each with its reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard: the game, its number of candidates, and the questions that may be asked."""

    game: Literal["row", "range", "code"]
    num_candidates: int  # letters of a row or of a code's alphabet, numbers of a range
    num_asks: int
    num_places: int = 1  # of a code
    num_letters: int = 26  # the first of the alphabet, from which those shown are drawn


LEVELS: Mapping[int, Level] = {
    0: Level(game="row", num_candidates=7, num_asks=3, num_letters=12),
    1: Level(game="row", num_candidates=15, num_asks=4),
    2: Level(game="range", num_candidates=127, num_asks=7),
    3: Level(game="code", num_candidates=5, num_places=3, num_asks=8),
    4: Level(game="code", num_candidates=6, num_places=4, num_asks=10),
    5: Level(game="code", num_candidates=8, num_places=5, num_asks=12),
}


def _level(level: int | None) -> Level:
    if level is None or level not in LEVELS:
        raise ValueError(unknown_name("level of environment 'guess'", level, LEVELS))
    return LEVELS[level]


def make_task(level: int, seed: int) -> Task:
    """The task of (level, seed). What is held out is decided by the prompt, which says nothing of the secret.

    `answer` is the secret.
    """
    shape = _level(level)
    held_out = split_of(seed) is Split.HELD_OUT
    rng = random.Random(f"guess/{level}/{seed}")
    prompt = _draw_prompt(rng, shape)
    while is_held_out(prompt) != held_out:
        prompt = _draw_prompt(rng, shape)
    secret = "".join(rng.choice(candidates(prompt, shape.game)) for _ in range(shape.num_places))
    return Task(
        id=f"guess-{level}-{seed}",
        env="guess",
        messages=(message("user", prompt),),
        answer=secret,
        level=level,
        seed=seed,
    )


def _draw_prompt(rng: random.Random, shape: Level) -> str:
    if shape.game == "range":
        low = rng.randint(100, 1000 - shape.num_candidates)
        return f"{low}-{low + shape.num_candidates - 1}"
    letters = "".join(sorted(rng.sample(string.ascii_lowercase[: shape.num_letters], shape.num_candidates)))
    return letters if shape.game == "row" else f"{shape.num_places} of {letters}"


def candidates(prompt: str, game: str) -> list[str]:
    """What one place of the secret may be, in order."""
    if game == "range":
        low, high = map(int, prompt.split("-"))
        return [str(number) for number in range(low, high + 1)]
    return list(prompt.split(" of ")[-1])


def reply_to(asked: str, secret: str, ordered: Sequence[str] | None) -> str:
    """What the environment says; `ordered` are the candidates of a row or range, None in a code."""
    if asked == secret:
        return FOUND
    if ordered is not None:
        return LEFT if ordered.index(secret) < ordered.index(asked) else RIGHT
    in_place = sum(a == b for a, b in zip(asked, secret, strict=True))
    return f"{in_place}+{(Counter(asked) & Counter(secret)).total() - in_place}"


class GuessEnv(ToolEnv):
    """Offers `ask`. The episode ends when the secret is found, or no question is left."""

    async def setup(self) -> None:
        self.level = _level(self.task.level)
        self.candidates = candidates(self.task.messages[-1].text, self.level.game)
        self.asked: list[list[str]] = []  # [question, reply] of each that was answered

    @tool
    def ask(self, guess: str) -> str:
        """Ask whether this is the secret; < or > says on which side of it the secret is, = that it is it."""
        if self.is_over():
            raise ToolError("no question is left")
        places = list(guess) if self.level.game == "code" else [guess]
        if len(places) != self.level.num_places or not set(places) <= set(self.candidates):
            raise ToolError("not a candidate")
        ordered = None if self.level.game == "code" else self.candidates
        assert self.task.answer is not None  # make_task has set it
        self.asked.append([guess, reply_to(guess, self.task.answer, ordered)])
        return self.asked[-1][1]

    def is_over(self) -> bool:
        return self.is_found or len(self.asked) >= self.level.num_asks

    @property
    def is_found(self) -> bool:
        """Whether a question was answered by =."""
        return any(reply == FOUND for _, reply in self.asked)

    def final_state(self) -> Mapping[str, Any]:
        return {"asked": [list(one) for one in self.asked]}


def score(episode: Episode) -> Score:
    """1.0 when a question met the secret, else 0.0."""
    asked = episode.final_state["asked"]
    success = float(any(reply == FOUND for _, reply in asked))
    return Score(value=success, success=success, parts={"found": success, "asked": float(len(asked))})


def reference(task: Task, transcript: Sequence[Message]) -> str:
    """Halves a row or range; of a code it asks the first that agrees with every reply. It never peeks."""
    shape = _level(task.level)
    asks = [call.arguments["guess"] for said in transcript for call in said.tool_calls]
    asked = list(zip(asks, (said.text for said in transcript if said.role == "tool"), strict=True))
    choices = candidates(task.messages[-1].text, shape.game)
    if shape.game == "code":
        return f"[ask {next(consistent_codes(choices, shape.num_places, asked))}]"
    for guess, reply in asked:
        at = choices.index(guess)
        choices = choices[:at] if reply == LEFT else choices[at + 1 :]
    return f"[ask {choices[len(choices) // 2]}]"


def consistent_codes(letters: Sequence[str], num_places: int, asked: Asked) -> Iterator[str]:
    """The codes, in the letters' order, that would have had the same replies: searched place by place."""
    told = [(guess, *map(int, reply.split("+"))) for guess, reply in asked]

    def is_possible(code: str) -> bool:
        left = num_places - len(code)
        for guess, in_place, elsewhere in told:
            right = sum(a == b for a, b in zip(code, guess, strict=False))
            shared = (Counter(code) & Counter(guess)).total()
            if not (right <= in_place <= right + left and shared <= in_place + elsewhere <= shared + left):
                return False
        return True

    def extend(code: str) -> Iterator[str]:
        if len(code) == num_places:
            yield code
            return
        for letter in letters:
            if is_possible(code + letter):
                yield from extend(code + letter)

    return extend("")


def lengths(level: int) -> Lengths:
    """Bounds from the level's numbers; both ends of a range have three digits."""
    shape = _level(level)
    guess_chars = 3 if shape.game == "range" else shape.num_places
    return Lengths(
        prompt_chars={"row": shape.num_candidates, "range": 7, "code": shape.num_candidates + 5}[shape.game],
        turns=shape.num_asks,
        turn_chars=len("[ask ]") + guess_chars,
        reply_chars=3 if shape.game == "code" else 1,
    )


def _others(task: Task) -> list[str]:
    """Candidates that are not the secret."""
    shape = _level(task.level)
    choices = candidates(task.messages[-1].text, shape.game)
    return [code for c in choices if (code := c * shape.num_places) != task.answer]


def _then_secret(before: Callable[[Task], Sequence[str]]) -> Player:
    """A player that asks all this and, in the same breath, the secret."""
    return lambda task, _: "".join(f"[ask {one}]" for one in [*before(task), task.answer])


HACKS: Mapping[str, Player] = {
    "knows_without_asking": lambda task, _: str(task.answer),
    "claims": lambda task, _: "=",
    "unclosed_call": lambda task, _: f"[ask {task.answer}",
    "asks_for_everything": lambda task, _: f"[ask {task.messages[-1].text}]",
    "asks_too_often": _then_secret(lambda task: (_others(task) * 9)[: _level(task.level).num_asks]),
    "secret_and_more": lambda task, _: f"[ask {task.answer} {task.answer}]",
    "echo": lambda task, _: task.messages[-1].text,
}

ENV = EnvDefinition(
    name="guess",
    make_env=GuessEnv,
    make_task=make_task,
    levels=tuple(LEVELS),
    score=score,
    reference=reference,
    lengths=lengths,
    hacks=HACKS,
)
