"""The screen of a run: colours and a progress bar on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from rl.screens import (
    Column,
    EndFacts,
    StartFacts,
    columns_of,
    end_lines,
    gap_lines,
    start_lines,
    step_header,
    step_line,
    world_note,
)
from rl.token_colors import Decode, printable, trajectory_text, trajectory_title
from rollout.trajectory import Trajectory

if TYPE_CHECKING:
    from rl.gates import Gap

HEADER_EVERY = 20
"""Step lines between two headers."""


class RunConsole:
    """Everything a run prints. Leaving it as a context manager ends the progress bar."""

    def __init__(self, num_steps: int, *, file: TextIO | None = None) -> None:
        self._console = Console(file=file, highlight=False)
        columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar = self._progress.add_task("steps", total=num_steps)
        self._num_step_lines = 0
        self._columns: Sequence[Column] = ()

    @property
    def has_colors(self) -> bool:
        return self._console.color_system is not None and not self._console.no_color

    def say(self, line: str, style: str = "") -> None:
        """One line, as it is: no markup is read in it, and control characters are spelled out."""
        self._print(Text(printable(line), style=style))

    def show_start(self, facts: StartFacts) -> None:
        self._say_all(start_lines(facts))

    def show_gap(self, before: Gap, after: Gap, limit: float) -> None:
        self._say_all(gap_lines(before, after, limit))

    def show_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """The line of step `step` (from 1), under a header now and then; the first one starts the bar."""
        self._progress.start()
        self._columns = self._columns or columns_of(metrics)
        if self._num_step_lines % HEADER_EVERY == 0:
            self.say(step_header(self._columns), style="bold")
        self._num_step_lines += 1
        note = world_note(metrics)
        self.say(step_line(step, metrics, self._columns) + (f"  {note}" if note else ""))
        self._progress.update(self._bar, completed=step)

    def show_trajectory(self, step: int, trajectory: Trajectory, decode: Decode) -> None:
        """A trajectory of step `step`, its tokens coloured, or bracketed where there are no colours."""
        self._print(trajectory_title(step, trajectory, colors=self.has_colors))
        self._print(trajectory_text(trajectory, decode, colors=self.has_colors))

    def show_end(self, facts: EndFacts) -> None:
        """The end screen; its last line begins with PASS or FAIL."""
        self.close()
        *lines, verdict = end_lines(facts)
        self._say_all(lines)
        self.say(verdict, style="bold green" if facts.verdict.passed else "bold red")

    def close(self) -> None:
        self._progress.stop()

    def __enter__(self) -> RunConsole:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def _print(self, text: Text) -> None:
        # soft_wrap leaves line breaks to the terminal: a step is one line of a log file.
        self._console.print(text, soft_wrap=True)
