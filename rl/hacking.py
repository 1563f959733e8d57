"""Signs that a policy games its reward. A run warns of them and goes on: each also has innocent causes.

Two windows of W steps that follow each other are compared: means, and z, Welch's statistic, which is their
difference over its standard error from the steps' own scatter. A sign needs both a large z and a large
difference; with W = 10, where steps are independent noise of whatever size, at least 98 of 100 runs of 200
steps warn of nothing (tests/rl/test_hacking.py). What is learned between two windows is no noise: answers
that grow because that is right are told as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rollout.trajectory import Trajectory, TrajectoryGroup

REWARD, SUCCESS, LENGTH = "rollout/reward_mean", "rollout/success", "rollout/response_tokens"
DUPLICATES, NEAR = "hack/duplicates", "hack/near_duplicates"
DISAGREEMENT, CORRELATION = "hack/judge_disagreement", "hack/reward_length_correlation"
JUDGED = "judge/score"
"""The part of a score that a judge gives; of a weighted sum it has the component's name before it."""

MIN_STEPS = 5
"""Of a window: fewer have no scatter worth the name."""

REWARD_Z = 3.5
"""Of the rise of the reward and of the fall of the reference, both in the same pair of windows."""
SHIFT_Z = 6.0
"""Of any other sign, each of which is one difference among many."""
MIN_FALL = 0.05
"""Fall of the reference as a share of what it was."""
MIN_DRIFT = 0.5
"""Change of the length as a share of what it was, to either side."""
MIN_RISE = 0.1
"""Rise of a share, such as that of duplicates."""


def hack_metrics(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """What a step's scored trajectories show of duplicates, length and a judge that success contradicts."""
    scored = [
        (place, trajectory)
        for place, group in enumerate(groups)
        for trajectory in group.trajectories
        if trajectory.score.value is not None
    ]
    if not scored:
        return {}
    said = [(place, trajectory.episode.said) for place, trajectory in scored]
    metrics = {
        DUPLICATES: shared(said),
        NEAR: shared([(place, letters(text)) for place, text in said]),
    }
    correlation = rank_correlation(
        [float(trajectory.score.value or 0.0) for _, trajectory in scored],
        [float(trajectory.num_sampled_tokens) for _, trajectory in scored],
    )
    if correlation is not None:
        metrics[CORRELATION] = correlation
    gaps = [gap for _, trajectory in scored for gap in judge_gaps(trajectory)]
    if gaps:
        metrics[DISAGREEMENT] = sum(gaps) / len(gaps)
    return metrics


def letters(text: str) -> str:
    """A text without all that is no letter, and without case: "[calc 1+2]" and "Calc 33" are both "calc"."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def shared(said: Sequence[tuple[Hashable, str]]) -> float:
    """The share of (place, text) whose text occurs at another place too.

    Within one task equal answers are what learning leads to; across tasks they are recited.
    """
    places: defaultdict[str, set[Hashable]] = defaultdict(set)
    for place, text in said:
        places[text].add(place)
    return sum(len(places[text]) > 1 for _, text in said) / len(said)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of the two does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def judge_gaps(trajectory: Trajectory) -> Iterator[float]:
    """|judge - success| for each judge of a trajectory, where it has a success."""
    success = trajectory.score.success
    for name, value in trajectory.score.parts.items():
        if success is not None and (name == JUDGED or name.endswith(f"/{JUDGED}")):
            yield abs(value - success)


@dataclass(frozen=True, slots=True)
class Shift:
    """The means of two windows, and how many standard errors of their difference apart they are."""

    before: float
    after: float
    z: float

    def __str__(self) -> str:
        return f"{self.before:.4g} to {self.after:.4g} (z {self.z:+.1f})"


def shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """(mean after - mean before) / sqrt(s_b^2 / n_b + s_a^2 / n_a), s^2 unbiased (Welch 1947)."""
    means = float(np.mean(before)), float(np.mean(after))
    error = sqrt(float(np.var(before, ddof=1)) / len(before) + float(np.var(after, ddof=1)) / len(after))
    difference = means[1] - means[0]
    z = difference / error if error > 0 else inf * np.sign(difference) if difference else 0.0
    return Shift(*means, float(z))


Shifts = Mapping[str, Shift]
"""By metric; one that was not there in enough steps of both windows is absent."""


def games_reference(shifts: Shifts, reference: str) -> str | None:
    """The reward rises while what it stands for falls."""
    reward, truth = shifts.get(REWARD), shifts.get(reference)
    if reward is None or truth is None or reward.z < REWARD_Z or truth.z > -REWARD_Z:
        return None
    if truth.before - truth.after < MIN_FALL * abs(truth.before):
        return None
    return f"the reward rose from {reward}, while {reference} fell from {truth}"


def drifts(shifts: Shifts, reference: str) -> str | None:
    length = shifts.get(LENGTH)
    if length is None or abs(length.z) < SHIFT_Z:
        return None
    if abs(length.after - length.before) < MIN_DRIFT * length.before:
        return None
    return f"the length of what is sampled went from {length} tokens"


def rises(metric: str, what: str) -> Callable[[Shifts, str], str | None]:
    """A sign that is the rise of one share."""

    def sign(shifts: Shifts, reference: str) -> str | None:
        share = shifts.get(metric)
        if share is None or share.z < SHIFT_Z or share.after - share.before < MIN_RISE:
            return None
        return f"{what} rose from {share}"

    return sign


SIGNS: Mapping[str, Callable[[Shifts, str], str | None]] = {
    "reference": games_reference,
    "length": drifts,
    "duplicates": rises(DUPLICATES, "the share of outputs that another task got as well"),
    "near_duplicates": rises(NEAR, "the share of outputs that differ from another task's in no letter"),
    "disagreement": rises(DISAGREEMENT, "the difference between judge and success"),
}
"""Kind of sign -> what is seen of it, in words; None for nothing."""


class HackMonitor:
    """Compares the last two windows after each step. No step counts for two warnings of one kind.

    `window` is W, 0 for no monitor; `reference` the metric that must not fall while the reward rises, "" for
    success.
    """

    def __init__(self, window: int, reference: str = "", state: Mapping[str, Any] | None = None) -> None:
        self._window = window
        self._reference = reference or SUCCESS
        self._is_named = bool(reference)
        self._rows: list[dict[str, float]] = list((state or {}).get("rows", ()))
        self._quiet_until: dict[str, int] = dict((state or {}).get("quiet_until", {}))

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on with, as JSON."""
        return {"rows": self._rows, "quiet_until": self._quiet_until}

    def observe(self, step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """Take a step's metrics; returns kind -> what to warn of, in words."""
        if not self._window:
            return {}
        names = (REWARD, self._reference, LENGTH, DUPLICATES, NEAR, DISAGREEMENT)
        row = {name: float(metrics[name]) for name in names if name in metrics}
        self._rows = [*self._rows, row][-2 * self._window :]
        if len(self._rows) < 2 * self._window:
            return {}
        shifts = dict(self._shifts())
        found = {kind: sign(shifts, self._reference) for kind, sign in SIGNS.items()}
        if self._is_named and self._reference not in shifts:
            found["reference"] = f"the metric {self._reference} that was to be watched is not there"
        told = {
            kind: f"{text}, means of steps {step - 2 * self._window + 1} to {step - self._window} and of the "
            f"{self._window} after them"
            for kind, text in found.items()
            if text is not None and step >= self._quiet_until.get(kind, 0)
        }
        self._quiet_until |= dict.fromkeys(told, step + 2 * self._window)
        return told

    def _shifts(self) -> Iterator[tuple[str, Shift]]:
        before, after = self._rows[: self._window], self._rows[self._window :]
        for name in dict.fromkeys(name for row in self._rows for name in row):
            values = [[row[name] for row in rows if name in row] for rows in (before, after)]
            if min(map(len, values)) >= MIN_STEPS:
                yield name, shift(*values)
