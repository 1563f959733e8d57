"""What the page asks for, as functions of the runs: the server and an export answer with the same ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from scripts.viewer.advantages import Advantages, advantages_of
from scripts.viewer.index import Row
from scripts.viewer.present import Json, group_json, plain, row_json, run_summary, step_json, trajectory_json
from scripts.viewer.query import FilterError, beside, parse_filters, search
from scripts.viewer.run import ViewedRun

PLACES = ("start", "near", "earlier", "later")
"""Names in a question for rows that are no filter."""


class NotFound(LookupError):
    """There is no such run."""


class Answers:
    """The answers on some runs. The advantages that were computed last are kept."""

    def __init__(self, runs: list[ViewedRun]) -> None:
        self.runs = runs
        self._last: tuple[object, Advantages | str] = (None, {})
        self._steps: dict[Path, dict[tuple[int, int, str, int], Json]] = {}

    def run(self, place: str) -> ViewedRun:
        """The run at a place, "0" for the first. Raises NotFound."""
        if not place.isdecimal() or int(place) >= len(self.runs):
            raise NotFound(f"there is no run {place!r}; known: 0 to {len(self.runs) - 1}")
        return self.runs[int(place)]

    def summaries(self) -> list[Json]:
        return [run_summary(run) for run in self.runs]

    def metrics(self, run: ViewedRun, start: int) -> list[Json]:
        """The metrics of every step from place `start` on."""
        return [plain(row) for row in run.metrics[start:]]

    def steps(self, run: ViewedRun) -> list[Json]:
        """Every step and split, in the order of the file; only what has grown is summed up again."""
        before, self._steps[run.path] = self._steps.get(run.path, {}), {}
        for (step, split), rows in run.index.by_step.items():
            key = (run.index.generation, step, split, len(rows))
            self._steps[run.path][key] = before.get(key) or step_json(step, split, rows)
        return [*self._steps[run.path].values()]

    def groups(self, run: ViewedRun, step: int, split: str) -> list[Json]:
        """The groups of a step, each with its task and its rows.

        Raises ValueError for a line that is damaged where the index did not look.
        """
        members: dict[int, list[Row]] = defaultdict(list)
        for row in run.index.by_step.get((step, split), []):
            members[row.group].append(row)
        firsts = [rows[0] for rows in members.values()]
        return [
            group_json(rows, record.trajectory.episode.task)
            for rows, record in zip(members.values(), run.index.records(firsts), strict=True)
        ]

    def rows(self, run: ViewedRun, given: Mapping[str, str]) -> Json:
        """A page of rows from line `start` on; or, with `near`, the rows before and after that line.

        `earlier` and `later` are where a look for these goes on; everything else is a filter. Raises
        FilterError.
        """
        places = {name: _place(name, given[name]) for name in PLACES if name in given}
        filters = parse_filters({name: value for name, value in given.items() if name not in PLACES})
        if "near" not in places:
            page = search(run.index, filters, start=places.get("start", 0))
            return {"rows": [row_json(row) for row in page.rows], "next_row": page.next_row}
        found = beside(
            run.index, filters, places["near"], earlier=places.get("earlier"), later=places.get("later")
        )
        return {
            "previous": found.previous and row_json(found.previous),
            "next": found.next and row_json(found.next),
            "earlier": found.earlier,
            "later": found.later,
            "number": found.number,
        }

    def trajectory(self, run: ViewedRun, line: int) -> Json:
        """Raises UnknownLine, or ValueError for a line that is damaged where the index did not look."""
        row = run.index.row(line)
        (record,) = run.index.records([row])
        return trajectory_json(row, record, run.texts)

    def advantages(self, run: ViewedRun, line: int) -> Json:
        """Turn -> advantages of its sampled tokens, and where they are from; or why there are none.

        Raises UnknownLine, or ValueError for a line that is damaged where the index did not look.
        """
        row = run.index.row(line)
        if row.split != "train":
            return _no_advantages("nothing is trained on held-out tasks")
        (record,) = run.index.records([row])
        if record.advantages is not None:
            recorded = {turn: list(values) for turn, values in enumerate(record.advantages)}
            return {"reason": "", "source": "recorded by the run", "turns": plain(recorded)}
        if run.index.holds(row, "advantages"):
            # The learner scores whatever it trains on, whether its loss has advantages or not.
            is_trained = record.old_logprobs is not None
            return _no_advantages(
                "what this run learns from has none"
                if is_trained
                else "the trajectory was left out of the loss"
            )
        found = self._computed(run, row)
        if isinstance(found, str):
            return _no_advantages(found)
        if not (turns := found.get(record.trajectory.id)):
            return _no_advantages("the trajectory was left out of the loss")
        source = "computed again from the recorded rewards: the record is older than advantages in records"
        return {"reason": "", "source": source, "turns": plain(turns)}

    def _computed(self, run: ViewedRun, row: Row) -> Advantages | str:
        rows = run.index.by_step[row.step, row.split]
        key = (run.path, run.index.generation, rows[0].line, rows[-1].line, len(rows), row.group)
        if self._last[0] != key:
            try:
                found: Advantages | str = advantages_of(run.config, run.index, rows, row.group)
            except ValueError as error:  # NoAdvantages, or a damaged line
                found = str(error)
            self._last = (key, found)
        return self._last[1]


def _place(name: str, text: str) -> int:
    if not text.isdecimal():
        raise FilterError(f"{name} = {text!r}: expected a place in the file, a line from 0")
    return int(text)


def _no_advantages(reason: str) -> Json:
    return {"reason": reason, "source": "", "turns": {}}


def metric_words() -> dict[str, str]:
    """Every metric in words. Takes seconds the first time: the definitions stand beside torch code."""
    from rl.metrics import METRICS

    return METRICS
