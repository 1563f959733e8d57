"""What a measurement found: figures with their targets, as lines and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number. `target` is what it must be at most (or at least, `is_floor`); None: it is only told."""

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    is_floor: bool = False
    detail: str = ""

    @property
    def is_met(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.is_floor else self.value <= self.target

    def __str__(self) -> str:
        shown = (
            f"{self.value:,.0f}"
            if self.value >= 1000 or self.value == int(self.value)
            else f"{self.value:.3g}"
        )
        line = f"  {self.name:<52} {shown:>9} {self.unit:<4}"
        if self.target is not None:
            sign = "at least" if self.is_floor else "at most"
            line += f"  target {sign} {self.target:g}: {'met' if self.is_met else 'MISSED'}"
        return f"{line}  {self.detail}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The figures of one subject. `void` says why they count for nothing: what was measured is not right."""

    subject: str
    figures: Sequence[Figure]
    void: str = ""

    @property
    def is_sound(self) -> bool:
        return not self.void and all(figure.is_met for figure in self.figures)

    def lines(self) -> list[str]:
        head = [self.subject]
        if self.void:
            head.append(f"  VOID: {self.void}")
        return [*head, *map(str, self.figures)]

    def to_dict(self) -> dict[str, Any]:
        figures = [{**asdict(figure), "met": figure.is_met} for figure in self.figures]
        return {"subject": self.subject, "void": self.void, "figures": figures}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def ratio_text(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The middle half of the ratios of each round, where both did the same work one after the other."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    if len(ratios) == 1:
        return f"one round's ratio: {ratios[0]:.2f}"
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"rounds' ratios: middle half {low:.2f} to {high:.2f}"
