"""Another attempt at an episode that the world spoiled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from rollout.trajectory import FailedAttempt, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a task is played before its trajectory is given up, and the waits between the attempts.

    A wait is `first_wait_s`, then twice as long each time, `longest_wait_s` at most; they are not drawn at
    random. Only an error that says of itself that it is `retryable` gets another attempt.
    """

    max_attempts: int = 2
    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; expected at least 1, which is no retry")

    def wait_s(self, num_failed: int) -> float:
        """Seconds from the end of the `num_failed`th attempt (from 1) to the next."""
        return min(self.first_wait_s * 2 ** (num_failed - 1), self.longest_wait_s)


async def with_attempts(
    attempt: Callable[[], Awaitable[Trajectory]], policy: RetryPolicy, *, deadline_s: float
) -> Trajectory:
    """The first trajectory that the world did not spoil, or the last attempt's; earlier ones are noted on it.

    Every attempt is a fresh environment, the same task and the same seeds: where the world recovers, what is
    trained on is what it would have been without the failure. None begins later than `deadline_s` seconds
    after the first did; one that is not made for that reason is noted as `overdue`.
    """
    started = time.monotonic()
    spoiled: list[Trajectory] = []
    while True:
        trajectory = await attempt()
        error, num_failed = trajectory.error, len(spoiled) + 1
        if error is None or not error.retryable or num_failed == policy.max_attempts:
            return _noting(spoiled, trajectory)
        if time.monotonic() - started + policy.wait_s(num_failed) > deadline_s:
            return _noting(spoiled, replace(trajectory, error=replace(error, overdue=True)))
        spoiled.append(trajectory)
        await asyncio.sleep(policy.wait_s(num_failed))


def _noting(spoiled: Sequence[Trajectory], last: Trajectory) -> Trajectory:
    """`last` with what became of the attempts before it."""
    timings_s = {
        part: sum(trajectory.timings_s[part] for trajectory in (*spoiled, last)) for part in last.timings_s
    }
    attempts = tuple(
        FailedAttempt(error=trajectory.error, num_sampled_tokens=trajectory.num_sampled_tokens)
        for trajectory in spoiled
        if trajectory.error is not None
    )
    return replace(last, timings_s=timings_s, attempts=attempts)
