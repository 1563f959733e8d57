"""Rewards of the user's own, in child processes that can be killed: several at once, a deadline a call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from envs.deadline import DeadlineError, in_thread
from envs.episode import RewardFn, Score
from envs.episode_json import encode_episode
from envs.messages import Task
from envs.names import unknown_name
from rewards.columns import columns_of, lacking
from rewards.failures import crashed, overdue
from rewards.forms import RewardBugError, Sample, of_episodes, score_here
from rewards.interpreters import require_interpreter
from rewards.scoring_worker import START_S, CrashedError, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a child found a user's reward to be."""

    kind: str
    is_group: bool
    columns: tuple[str, ...]
    can_split: bool
    uses_sandbox: bool
    note: str


def facts_of(spec: str, answer: dict[str, Any]) -> Facts:
    """The facts in a child's first answer.

    Raises:
        ValueError: it could not load the reward, or did not understand its signature.
    """
    if "refused" in answer:
        raise ValueError(f"reward {spec!r} cannot be used:\n{answer['refused']}")
    facts = answer["facts"]
    return Facts(**{**facts, "columns": tuple(facts["columns"])})


async def inspect_reward(spec: str, python: str = "") -> Facts:
    """Load a user's reward in a child process of its own, which is ended again.

    Raises:
        ValueError: it does not load, which its own traceback says, or is of no known signature; or `python`
            is no interpreter for it.
    """
    if python:
        await in_thread(partial(require_interpreter, python))
    worker = await _started(spec, python)
    try:
        return facts_of(spec, worker.facts)
    finally:
        await worker.end()


async def _started(spec: str, python: str) -> Worker:
    try:
        return await Worker.start(spec, python)
    except OSError as error:
        raise ValueError(f"reward {spec!r} cannot be used: its process did not start: {error}") from None
    except CrashedError as error:
        raise ValueError(f"reward {spec!r} cannot be used: while it was imported {error}") from None
    except DeadlineError:
        raise ValueError(
            f"reward {spec!r} cannot be used: its import had not come to an end after {START_S:g} s"
        ) from None


def missing_columns(spec: str, facts: Facts, tasks: Iterable[Task]) -> str | None:
    """What a reward asks for that one of the tasks does not have, in words; None for nothing."""
    for task in tasks:
        if missing := lacking(facts.columns, task):
            there = sorted(columns_of(task))
            problems = "; ".join(unknown_name("column", name, there) for name in missing)
            return f"reward {spec!r} takes {', '.join(missing)}, which task {task.id} lacks: {problems}"
    return None


WHOLE = ("exception", "timeout", "crashed", "world", "judge")
"""Kinds of errors that befall a call for several samples as a whole."""


class UserReward:
    """A reward of the user's own, by name, in `num_workers` child processes that start when they are needed.

    Success is the environment's own, `env_score`, where that has one: a reward says what is trained for.
    `python` is the interpreter that they run; empty: this process's own. `num_steps`: of the run.
    """

    def __init__(
        self,
        spec: str,
        env_score: RewardFn,
        *,
        num_workers: int = 1,
        shuffled: bool = False,
        python: str = "",
        num_steps: int = 0,
    ) -> None:
        self.spec = spec
        self.num_steps = num_steps
        self.python = python
        self.shuffled = shuffled
        self.name = f"shuffled:{spec}" if shuffled else spec
        self._env = of_episodes("of the environment", env_score)
        self._idle: list[Worker] = []
        self._slots = asyncio.Semaphore(num_workers)
        self._starting = asyncio.Lock()
        self._facts: Facts | None = None

    @property
    def is_group(self) -> bool:
        """Whether it must see the members of a group together; known after `start`."""
        if self._facts is None:
            raise RuntimeError(f"reward {self.spec} was not started")
        return self._facts.is_group

    async def start(self) -> None:
        """Bring the first child up, once. Raises ValueError: the reward cannot be used."""
        async with self._starting:
            if self._facts is None:
                worker = await _started(self.spec, self.python)
                try:
                    self._facts = facts_of(self.spec, worker.facts)
                except BaseException:
                    await worker.end()
                    raise
                self._idle.append(worker)

    async def score(self, samples: Sequence[Sample], *, timeout_s: float) -> list[Score]:
        """A score for each sample, in order, from one call of the function with `timeout_s` wall seconds.

        Where a call for several fails as a whole, and the function looks at each for itself, it is asked for
        each alone: what one sample does to it costs its siblings nothing.

        Raises:
            RewardBugError: the function returned what can be no scores of these samples.
        """
        scores = await self._ask(samples, timeout_s)
        if self._can_split and len(samples) > 1 and all(score.error_kind in WHOLE for score in scores):
            alone = await asyncio.gather(*(self._ask([sample], timeout_s) for sample in samples))
            scores = [score for (score,) in alone]
        judged = (self._judged(*pair, timeout_s) for pair in zip(scores, samples, strict=True))
        return list(await asyncio.gather(*judged))

    @property
    def _can_split(self) -> bool:
        return self._facts is not None and self._facts.can_split

    async def _ask(self, samples: Sequence[Sample], timeout_s: float) -> list[Score]:
        async with self._slots:
            return await self._answer(samples, timeout_s)

    async def _answer(self, samples: Sequence[Sample], timeout_s: float) -> list[Score]:
        try:
            worker = await self._free_worker()
        except ValueError as error:  # it loaded once: the machine is short of something, or the file changed
            return [crashed(self.spec, sample, str(error)) for sample in samples]
        rows = [
            {
                "id": sample.id,
                "episode": encode_episode(sample.episode),
                "token_ids": list(sample.token_ids),
                "step": sample.step,
                "num_steps": self.num_steps,
            }
            for sample in samples
        ]
        try:
            answer = await worker.ask({"samples": rows}, timeout_s)
        except DeadlineError as error:
            await worker.end()
            return [
                overdue(self.spec, s, f"{error}; its process was killed{_shared(samples)}") for s in samples
            ]
        except CrashedError as error:
            await worker.end()
            return [crashed(self.spec, sample, f"{error}{_shared(samples)}") for sample in samples]
        except BaseException:  # cancelled in mid-call: nobody waits for that answer any more
            await worker.end()
            raise
        self._idle.append(worker)
        if "bug" in answer:
            raise RewardBugError(answer["bug"])
        return [Score(**row) for row in answer["scores"]]

    async def _free_worker(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            await worker.end()
        worker = await _started(self.spec, self.python)
        try:
            facts_of(self.spec, worker.facts)
        except BaseException:
            await worker.end()
            raise
        return worker

    async def _judged(self, own: Score, sample: Sample, timeout_s: float) -> Score:
        if own.value is None:
            return own
        (judged,) = await score_here(self._env, [sample], timeout_s=timeout_s)
        return judged if judged.value is None else with_success(own, judged.success)

    async def close(self) -> None:
        """End every child that is not at work."""
        while self._idle:
            await self._idle.pop().end()


def with_success(own: Score, success: float | None) -> Score:
    """`own` with the environment's success, where it has one; its own is kept as the part "success"."""
    if success is None:
        return own
    parts = own.parts if own.success is None else {**own.parts, "success": own.success}
    return replace(own, parts=parts, success=success)


def _shared(samples: Sequence[Sample]) -> str:
    return "" if len(samples) == 1 else f" (one call for {len(samples)} samples: none has a score)"
