"""What scripts/evaluate.py says of an evaluation: a table for the screen, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Self

from rl.evaluation import Estimate, Evaluation, LevelResult
from rl.paired import LevelDifference, differences, differing_settings, differing_versions
from rl.pass_at_k import MIN_TASKS


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation's numbers, and what it adds to another one's."""

    evaluation: Evaluation
    results: Sequence[LevelResult]
    other: Evaluation | None
    other_results: Sequence[LevelResult]
    differences: Sequence[LevelDifference]
    ks: Sequence[int]

    @classmethod
    def of(cls, evaluation: Evaluation, other: Evaluation | None, ks: Sequence[int]) -> Self:
        return cls(
            evaluation=evaluation,
            results=evaluation.results(ks),
            other=other,
            other_results=other.results(ks) if other else (),
            differences=differences(evaluation, other, ks) if other else (),
            ks=ks,
        )

    def lines(self) -> Iterator[str]:
        """The tables, and what a reader of them must know."""
        yield from _result_lines(self.evaluation, self.results)
        if self.other:
            yield ""
            yield from _result_lines(self.other, self.other_results)
            yield ""
            yield from _difference_lines(self.evaluation, self.other, self.differences)
            for line in differing_settings(self.evaluation, self.other):
                yield f"  NOTE: the settings differ: {line}"
            for line in differing_versions(self.evaluation, self.other):
                yield f"  NOTE: the versions differ: {line}"
        if any(result.average.low is None for result in self.results):
            yield f"  NOTE: no interval is computed from fewer than {MIN_TASKS} tasks"

    def to_json(self) -> dict[str, Any]:
        """evaluation.json: the evaluation itself (rl/evaluation.py reads it) and what follows from it."""
        found: dict[str, Any] = {
            **self.evaluation.to_json(),
            "results": [_as_json(result) for result in self.results],
        }
        if self.other:
            found["against"] = {
                "policy": dict(self.other.policy),
                "settings": dict(self.other.settings),
                "versions": dict(self.other.versions),
                "results": [_as_json(result) for result in self.other_results],
                "differences": [_as_json(each) for each in self.differences],
            }
        return found


@dataclass(frozen=True)
class Comparison:
    """Policies that met the same tasks: each one's numbers, and what each adds to every one before it."""

    evaluations: Sequence[Evaluation]
    ks: Sequence[int]

    def _pairs(self) -> Iterator[tuple[Evaluation, Evaluation, Sequence[LevelDifference]]]:
        for earlier, later in combinations(self.evaluations, 2):
            yield later, earlier, differences(later, earlier, self.ks)

    def lines(self) -> Iterator[str]:
        """The tables of each policy, and of each pair."""
        for evaluation in self.evaluations:
            yield from Report.of(evaluation, None, self.ks).lines()
            yield ""
        for later, earlier, found in self._pairs():
            yield from _difference_lines(later, earlier, found)

    def to_json(self) -> dict[str, Any]:
        """comparison.json: the results of each policy by name, and the difference of each pair."""
        return {
            "results": {
                e.policy["name"]: [_as_json(result) for result in e.results(self.ks)]
                for e in self.evaluations
            },
            "differences": [
                {
                    "policy": later.policy["name"],
                    "less": earlier.policy["name"],
                    "by_level": [_as_json(each) for each in found],
                }
                for later, earlier, found in self._pairs()
            ],
        }


def _difference_lines(ours: Evaluation, other: Evaluation, found: Sequence[LevelDifference]) -> Iterator[str]:
    yield f"{_name(ours)} less {_name(other)}, paired by task"
    rows = [[f"{d.env}:{d.level}", f"{d.num_tasks} tasks", *_cells(d, signed=True)] for d in found]
    yield from _table(rows)


def _result_lines(evaluation: Evaluation, results: Sequence[LevelResult]) -> Iterator[str]:
    yield f"{_name(evaluation)}, temperature {evaluation.settings.get('eval_temperature')}"
    yield from _table(
        [
            [
                f"{r.env}:{r.level}",
                f"{r.num_tasks} tasks x {r.num_samples}",
                f"{r.num_unscored} unscored",
                *_cells(r, num_samples=r.num_samples),
            ]
            for r in results
        ]
    )
    if evaluation.errors:
        reasons = ", ".join(f"{kind} {count}" for kind, count in evaluation.errors.items())
        yield f"  NOTE: unscored episodes count as not solved: {reasons}"


def _name(evaluation: Evaluation) -> str:
    step = evaluation.policy.get("step")
    return f"{evaluation.policy.get('name')}" + ("" if step is None else f" after step {step}")


def _cells(
    result: LevelResult | LevelDifference, *, num_samples: int | None = None, signed: bool = False
) -> list[str]:
    average = f"avg@{num_samples}" if num_samples else "avg"
    named: Mapping[str, Estimate] = {
        **{f"pass@{k}": estimate for k, estimate in result.pass_at.items()},
        average: result.average,
    }
    return [f"{name} {estimate.text(signed=signed)}" for name, estimate in named.items()]


def _as_json(result: LevelResult | LevelDifference) -> dict[str, Any]:
    row = asdict(result)
    row["pass_at"] = {str(k): estimate for k, estimate in row["pass_at"].items()}  # JSON's keys are texts
    return row


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(padded).rstrip()
