"""Is one success rate above another? Wilson intervals and the run's verdict."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

Z_95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """`num_successes` of `num_tasks` attempted tasks; every attempted task is in the denominator."""

    num_successes: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1 or not 0 <= self.num_successes <= self.num_tasks:
            raise ValueError(
                f"SuccessRate({self.num_successes}, {self.num_tasks}): expected num_tasks >= 1 and "
                "0 <= num_successes <= num_tasks"
            )

    @property
    def rate(self) -> float:
        return self.num_successes / self.num_tasks

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval."""
        return wilson_interval(self.num_successes, self.num_tasks)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.rate:.3f} ({self.num_successes} of {self.num_tasks}; 95 % interval {low:.3f}-{high:.3f})"
        )


def wilson_interval(num_successes: float, num_tasks: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a binomial rate (Wilson 1927, JASA 22:209-212).

    With p = k / n: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± z sqrt(p(1-p)/n) it stays
    inside [0, 1] and is not empty at k = 0 or k = n. k and n may be effective numbers (rl/pass_at_k.py);
    scipy.stats.binomtest takes whole ones only.
    """
    rate = num_successes / num_tasks
    shrink = 1 + z * z / num_tasks
    center = (rate + z * z / (2 * num_tasks)) / shrink
    half_width = z * sqrt(rate * (1 - rate) / num_tasks + z * z / (4 * num_tasks * num_tasks)) / shrink
    # Exact at the ends, where rounding would leave 1e-17 instead of 0 or 1.
    low = 0.0 if num_successes == 0 else center - half_width
    high = 1.0 if num_successes == num_tasks else center + half_width
    return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether training helped, and why; `gain` is the difference of the two rates."""

    passed: bool
    gain: float
    reason: str


def verdict(before: SuccessRate, after: SuccessRate, min_gain: float) -> Verdict:
    """PASS if and only if the 95 % intervals are apart, `after` above, and the gain is >= `min_gain`."""
    # Exact, because 0.7 - 0.4 < 0.3 in floats and a gain on the limit passes.
    gain = Fraction(after.num_successes, after.num_tasks) - Fraction(before.num_successes, before.num_tasks)
    apart = after.interval[0] > before.interval[1]
    enough = gain >= Fraction(str(min_gain))
    reasons = [
        "the 95 % intervals are apart" if apart else "the 95 % intervals overlap or success fell",
        f"the gain of {float(gain):+.3f} is {'at least' if enough else 'below'} {min_gain:g}",
    ]
    return Verdict(passed=apart and enough, gain=float(gain), reason=" and ".join(reasons))
