"""Weighted sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from envs.episode import Score
from rewards.adapters import adapt
from rewards.forms import DOES_NOT_APPLY, Form, Sample, Scores, bounded, then, together

RESERVED = ("success", "unshuffled")
"""Parts that are logged besides a reward's own (rewards/base.py)."""


def weighted(components: Mapping[str, tuple[object, float]]) -> Form:
    """The weighted sum of named rewards; each one's own value is logged as a part. Weight 0 only logs.

    A component is whatever `--reward` takes: of an episode or a group, asynchronous or not, ours or TRL's,
    verl's, OpenRLHF's. One unscored component makes the whole unscored: a sum without it would be another
    reward. One that does not apply (TRL's None) is left out of the sum. The whole is a success when every
    component that reports success does.
    """
    weights = {name: weight for name, (_, weight) in components.items()}
    if problem := next(_problems(weights), None):
        raise ValueError(problem)
    forms = {name: adapt(function, name) for name, (function, _) in components.items()}

    def score(samples: Sequence[Sample]) -> Scores:
        def added(columns: list[list[Score]]) -> list[Score]:
            rows = [dict(zip(forms, row, strict=True)) for row in zip(*columns, strict=True)]
            return [
                bounded("weighted", _sum(row, weights), sample)
                for row, sample in zip(rows, samples, strict=True)
            ]

        return then(together([form.score(samples) for form in forms.values()]), added)

    return Form(
        name="weighted",
        kind="weighted",
        score=score,
        is_group=any(form.is_group for form in forms.values()),
        can_split=all(form.can_split or not form.is_group for form in forms.values()),
        uses_sandbox=any(form.uses_sandbox for form in forms.values()),
        note="; ".join(form.note for form in forms.values() if form.note),
        columns=tuple(dict.fromkeys(column for form in forms.values() for column in form.columns)),
    )


def _problems(weights: Mapping[str, float]) -> Iterator[str]:
    """What is wrong with the names and weights of components."""
    if not weights:
        yield "weighted() was given no rewards; expected {name: (function, weight)}"
        return
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            yield f"reward {name!r} has weight {weight!r}; expected a finite number"
        if name in RESERVED:
            yield f"a reward cannot be named {name!r}: a part has that name already; rename it"
        if above := next((other for other in weights if name.startswith(f"{other}/")), None):
            yield f"the parts of reward {above!r} may be named as reward {name!r} is; rename one of them"
    if not any(weights.values()):
        yield f"all weights are 0 ({', '.join(weights)}): there would be no reward; give one a weight"


def _sum(scores: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    """The weighted sum of one episode's scores by component."""
    value, is_scored = 0.0, False
    parts: dict[str, float] = {}
    successes: list[float] = []
    explanations: list[str] = []
    for name, component in scores.items():
        if component == DOES_NOT_APPLY:
            continue
        if component.value is None:
            return Score(
                value=None,
                error=f"{name}: {component.error or 'unscored'}",
                error_kind=component.error_kind,
            )
        is_scored = True
        value += weights[name] * component.value
        parts[name] = component.value
        parts |= {f"{name}/{part}": number for part, number in component.parts.items()}
        if component.success is not None:
            successes.append(component.success)
        if component.explanation:
            explanations.append(f"{name}: {component.explanation}")
    if not is_scored:
        return DOES_NOT_APPLY
    return Score(
        value=value, parts=parts, success=min(successes, default=None), explanation="\n".join(explanations)
    )
