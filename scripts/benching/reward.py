"""How many rewards of a user's own are scored a second, in child processes that a deadline kills."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from rewards.forms import Sample
from rewards.scoring import UserReward
from scripts.benching.report import Figure, Measurement
from scripts.benching.user_reward import compute_score

NUM_WORKERS = 8
HUNG_S = 0.5
_FILE = Path(__file__).with_name("user_reward.py")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reward-samples", type=int, default=2000, help="reward: episodes in a round")
    parser.add_argument("--reward-rounds", type=int, default=5, help="reward: rounds")


def measure(options: argparse.Namespace) -> list[Measurement]:
    return [asyncio.run(_measure(options.reward_samples, options.reward_rounds))]


async def _measure(num_samples: int, rounds: int) -> Measurement:
    samples = [_sample(number) for number in range(num_samples)]
    expected = [float(number % 2) for number in range(num_samples)]
    fast, slow, hanging = (
        UserReward(f"{_FILE}:{name}", _no_success, num_workers=NUM_WORKERS)
        for name in ("compute_score", "slow_score", "sometimes_hangs")
    )
    subject = f"reward: a verl compute_score in {NUM_WORKERS} child processes on {os.cpu_count()} cores"
    try:
        for reward in (fast, slow, hanging):
            await reward.start()
        if await _values(fast, samples) != expected:  # the gate, and the warm-up of every child
            return Measurement(
                subject=subject, figures=(), void="the scores are not those of the function itself"
            )
        await _values(slow, samples[: 4 * NUM_WORKERS])
        per_s = {"children": [], "here": [], "slow": []}
        for _ in range(rounds):
            per_s["here"].append(_here_per_s(samples))
            per_s["children"].append(await _per_s(fast, samples))
            per_s["slow"].append(await _per_s(slow, samples[: 40 * NUM_WORKERS]))
        figures = _figures({name: statistics.median(values) for name, values in per_s.items()})
        hung, is_right = await _with_hung(hanging, min(400, num_samples))
        void = "" if is_right else "a sample that hangs took others' scores along"
        return Measurement(subject=subject, figures=[*figures, hung], void=void)
    finally:
        for reward in (fast, slow, hanging):
            await reward.close()


def _figures(per_s: dict[str, float]) -> list[Figure]:
    ceiling = NUM_WORKERS / 0.05
    return [
        Figure(name="the function itself, in this process", value=per_s["here"], unit="/s"),
        Figure(name=f"scored by {NUM_WORKERS} workers", value=per_s["children"], unit="/s"),
        Figure(
            name="a call through a child costs",
            value=1e3 * (1 / per_s["children"] - 1 / per_s["here"]),
            unit="ms",
            detail="of this machine's time, all children together",
        ),
        Figure(
            name="a function that waits 50 ms",
            value=per_s["slow"],
            unit="/s",
            detail=f"{per_s['slow'] / ceiling:.0%} of {ceiling:.0f}/s, its limit with {NUM_WORKERS} workers",
        ),
    ]


async def _with_hung(reward: UserReward, num_samples: int) -> tuple[Figure, bool]:
    """One sample of a hundred never returns; whether it alone is killed and has no score."""
    samples = [_sample(number, hangs=number % 100 == 50) for number in range(num_samples)]
    started = time.perf_counter()
    values = await _values(reward, samples, timeout_s=HUNG_S)
    per_s = num_samples / (time.perf_counter() - started)
    is_right = [value is None for value in values] == ["hang" in s.episode.answer for s in samples]
    name = "with one in a hundred that never returns"
    return Figure(name=name, value=per_s, unit="/s", detail=f"killed after {HUNG_S} s"), is_right


async def _per_s(reward: UserReward, samples: Sequence[Sample]) -> float:
    started = time.perf_counter()
    await _values(reward, samples)
    return len(samples) / (time.perf_counter() - started)


async def _values(reward: UserReward, samples: Sequence[Sample], timeout_s: float = 30) -> list[float | None]:
    scores = await asyncio.gather(*(reward.score([sample], timeout_s=timeout_s) for sample in samples))
    return [score.value for (score,) in scores]


def _here_per_s(samples: Sequence[Sample]) -> float:
    started = time.perf_counter()
    for sample in samples:
        compute_score("bench", sample.episode.answer, sample.episode.task.answer or "")
    return len(samples) / (time.perf_counter() - started)


def _no_success(episode: Episode) -> Score:
    return Score(value=0.0)


def _sample(number: int, *, hangs: bool = False) -> Sample:
    """Every second one is right."""
    task = Task(
        id=f"t{number}", env="bench", messages=(message("user", f"{number}+1"),), answer=str(number + 1)
    )
    said = f"{number} and one is {number + number % 2}{', hang' if hangs else ''}"
    transcript = (*task.messages, message("assistant", said))
    return Sample(
        id=f"0-{number}-0", episode=Episode(task=task, transcript=transcript, stop_reason=StopReason.ANSWERED)
    )
