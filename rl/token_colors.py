"""One trajectory with its tokens marked: what was sampled and trains, what the world said, what is masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from rich.text import Text

from rollout.trajectory import Trajectory

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens included."""


class TokenKind(Enum):
    """What a run of tokens is: its style, and its brackets where there are no colours."""

    PROMPT = ("dim", "", "")
    TOOL = ("cyan", "<<", ">>")
    SAMPLED = ("bold green", "[[", "]]")
    MASKED = ("magenta", "((", "))")

    def __init__(self, style: str, opening: str, closing: str) -> None:
        self.style, self.opening, self.closing = style, opening, closing


MEANINGS = {
    TokenKind.PROMPT: "prompt",
    TokenKind.TOOL: "tool and template",
    TokenKind.SAMPLED: "sampled, trained",
    TokenKind.MASKED: "sampled, masked: the trajectory has no reward",
}


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Consecutive tokens of one kind."""

    kind: TokenKind
    token_ids: tuple[int, ...]


def token_runs(trajectory: Trajectory) -> Iterator[TokenRun]:
    """The tokens on the path from the root to the last turn, in order, without empty runs.

    Example, two turns with prompt P, answers A0 and A1, tool reply E:
        PROMPT P, SAMPLED A0, TOOL E, SAMPLED A1
    """
    spoken = TokenKind.MASKED if trajectory.score.value is None else TokenKind.SAMPLED
    for index in _path(trajectory):
        turn = trajectory.turns[index]
        given = TokenKind.PROMPT if turn.parent is None else TokenKind.TOOL
        for run in (TokenRun(given, turn.context_ids), TokenRun(spoken, turn.completion.token_ids)):
            if run.token_ids:
                yield run


def trajectory_text(trajectory: Trajectory, decode: Decode, *, colors: bool) -> Text:
    """The tokens as text: coloured by kind, or in the kind's brackets where `colors` is False."""
    text = Text()
    for run in token_runs(trajectory):
        words = printable(decode(run.token_ids))
        if colors:
            text.append(words, style=run.kind.style)
        else:
            text.append(run.kind.opening + words + run.kind.closing)
    return text


def trajectory_title(step: int, trajectory: Trajectory, *, colors: bool) -> Text:
    """One line about the trajectory, and the legend."""
    reward = "unscored" if trajectory.score.value is None else f"reward {trajectory.score.value:g}"
    branches = len(trajectory.leaves)
    text = Text(
        f"step {step}, trajectory {printable(trajectory.id)}: {reward}, "
        f"stopped: {trajectory.episode.stop_reason}, {len(trajectory.turns)} turns, "
        f"{trajectory.num_sampled_tokens} sampled tokens"
        + (f", last of {branches} branches" if branches > 1 else "")
        + "\n"
    )
    for kind, meaning in MEANINGS.items():
        label = meaning if colors else kind.opening + meaning + kind.closing
        text.append(label, style=kind.style if colors else "")
        text.append("  ")
    text.rstrip()
    return text


def printable(text: str) -> str:
    """`text` with control characters spelled out, but for newlines: a policy may write escape sequences."""
    return "".join(_spelled(character) for character in text)


def _spelled(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _path(trajectory: Trajectory) -> list[int]:
    """Indices of the turns from the root to the last one."""
    path: list[int] = []
    index = len(trajectory.turns) - 1 if trajectory.turns else None
    while index is not None:
        path.append(index)
        index = trajectory.turns[index].parent
    return path[::-1]
