"""Scores of several seeds and environments as one number, with what they allow to be said of it.

After "Deep RL at the Edge of the Statistical Precipice" (Agarwal et al. 2021, arXiv 2108.13264):
interquartile means with intervals by a bootstrap stratified by environment, and the probability that one
algorithm beats another. Scores are a mapping environment -> (num_seeds,) float64, all in one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

MIN_SEEDS = 4
MIN_SCORES = 5
"""A bootstrap interval needs so many seeds of every environment and so many scores in all. One meant to cover
in 95 % of cases covered in 93 to 96 % with 5 seeds of one environment or 4 of two, in 88 % with 4 of one, in
70 to 80 % with 3 of one (simulated comparisons; tests/rl/test_aggregates.py holds the first two)."""
MIN_PAIRS = 6
"""Below this many pairs no outcome of the sign test rejects at 5 %: 2 * 0.5**5 > 0.05."""
NUM_RESAMPLES = 10_000

Scores = Mapping[str, np.ndarray]
Statistic = Callable[[np.ndarray], np.ndarray]
"""(..., num_scores) to (...): one number of all scores, over the last axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval; without one `low` and `high` are None and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"none ({self.reason})"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval: {self.reason})"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean without the lowest and the highest quarter; (..., n) to (...).

    floor(n / 4) scores are left out at each end (section 4.3).
    """
    return stats.trim_mean(scores, 0.25, axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over the last axis."""
    return scores.mean(axis=-1)


def bootstrap(
    scores: Scores, statistic: Statistic = interquartile_mean, *, seed: int = 0, num: int = NUM_RESAMPLES
) -> Estimate:
    """`statistic` of all scores, with its 95 % interval by a bootstrap stratified by environment.

    Each resample draws, in every environment, as many seeds as there are, with replacement (section 4.1). The
    interval lies between percentiles of the resamples. The plain ones, 2.5 and 97.5, are too near for few
    seeds: with n a stratum a resample's variance is (n - 1) / n of the estimate's, and is itself estimated.
    So they are moved out to Φ(∓ sqrt(n / (n - 1)) t), with t the 0.975 quantile of Student's
    distribution ("expanded percentile", Hesterberg 2015, The American Statistician 69:371-386, section 3.3).
    """
    strata = [np.asarray(values, dtype=np.float64) for values in scores.values()]
    if not strata or min(map(len, strata)) == 0:
        return Estimate(value=None, reason="no scores")
    value = float(statistic(np.concatenate(strata)))
    fewest, num_scores = min(map(len, strata)), sum(map(len, strata))
    if fewest < MIN_SEEDS or num_scores < MIN_SCORES:
        return Estimate(value=value, reason=f"{_seeds(fewest)}, {MIN_SCORES} are needed")
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=(num, len(values)))] for values in strata]
    resampled = statistic(np.concatenate(drawn, axis=-1))
    quantile = stats.t.ppf(0.975, sum(len(values) - 1 for values in strata))
    tail = stats.norm.cdf(-sqrt(fewest / (fewest - 1)) * quantile)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high))


def probability_of_improvement(ours: Scores, theirs: Scores) -> Estimate:
    """P(ours > theirs) on the same environment and seed, a tie counting half; with its 95 % interval.

    Position i of both is the same seed: the same tasks and the same starting policy. The interval is exact
    (Clopper and Pearson 1934, Biometrika 26:404-413), ties counted against each bound: without
    ties 0.5 lies outside if and only if the two-sided sign test rejects at 5 %, for which it takes MIN_PAIRS.
    A bootstrap of pairs that all agree would be the single point 1, however few they are.
    """
    if ours.keys() != theirs.keys() or any(len(ours[env]) != len(theirs[env]) for env in ours):
        raise ValueError(
            f"scores do not pair: {_counts(ours)} and {_counts(theirs)}; give the same seeds of both"
        )
    differences = np.concatenate([np.asarray(ours[env]) - np.asarray(theirs[env]) for env in ours] or [[]])
    num = len(differences)
    if num == 0:
        return Estimate(value=None, reason="no seed was finished by both")
    num_wins, num_ties = int((differences > 0).sum()), int((differences == 0).sum())
    value = (num_wins + num_ties / 2) / num
    if num < MIN_PAIRS:
        return Estimate(value=value, reason=f"{num} pair{'' if num == 1 else 's'}, {MIN_PAIRS} are needed")
    return Estimate(
        value=value,
        low=_exact_interval(num_wins, num)[0],
        high=_exact_interval(num_wins + num_ties, num)[1],
    )


def _exact_interval(num_successes: int, num: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a rate."""
    return stats.binomtest(num_successes, num).proportion_ci(0.95, method="exact")


@dataclass(frozen=True, slots=True)
class Curve:
    """Success of one run after so many sampled tokens; both (num_evaluations,), tokens strictly rising."""

    tokens: np.ndarray
    success: np.ndarray

    def __post_init__(self) -> None:
        if (
            len(self.tokens) != len(self.success)
            or len(self.tokens) == 0
            or (np.diff(self.tokens) <= 0).any()
        ):
            raise ValueError(
                f"a curve of tokens {self.tokens} and success {self.success}: expected as many of both, at "
                "least one, and tokens that rise"
            )

    def at(self, tokens: np.ndarray) -> np.ndarray:
        """Success at `tokens`, straight between evaluations; NaN beyond the last one."""
        return np.interp(tokens, self.tokens, self.success, right=np.nan)


def area_under_curve(curve: Curve, budget: float) -> float | None:
    """Mean success over the first `budget` tokens, straight between evaluations; None for a shorter curve."""
    if curve.tokens[-1] < budget or curve.tokens[0] > 0:
        return None
    inside = curve.tokens < budget
    tokens = np.append(curve.tokens[inside], budget)
    return float(np.trapezoid(curve.at(tokens), tokens) / budget)


def time_to_threshold(curve: Curve, threshold: float) -> float | None:
    """Tokens until success first reaches `threshold`, straight between evaluations; None: it never does."""
    reached = np.flatnonzero(curve.success >= threshold)
    if len(reached) == 0:
        return None
    after = int(reached[0])
    if after == 0:
        return float(curve.tokens[0])
    (x0, x1), (y0, y1) = curve.tokens[after - 1 : after + 1], curve.success[after - 1 : after + 1]
    return float(x0 + (threshold - y0) / (y1 - y0) * (x1 - x0))


def median_time(times: Sequence[float | None]) -> float | None:
    """The median where None is later than any time: None when half of the runs or more never got there."""
    middle = float(np.median([np.inf if time is None else time for time in times])) if times else np.inf
    return middle if np.isfinite(middle) else None


def _seeds(num: int) -> str:
    return f"{num} seed{'' if num == 1 else 's'} of an environment"


def _counts(scores: Scores) -> str:
    return ", ".join(f"{len(values)} of {env}" for env, values in scores.items()) or "none"
