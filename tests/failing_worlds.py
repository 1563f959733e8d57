"""Environments that fail where and how a test says, and groups of real episodes in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from envs.base import WorldError
from envs.messages import Message, StepResult, Task
from envs.tasks.calc import CalcEnv
from rewards.base import Reward
from rollout.agent import request_seed, run_group
from rollout.limits import Limits
from rollout.retry import RetryPolicy
from rollout.trajectory import TrajectoryGroup
from tests.scripted import CALC, RENDERER, REWARD, TASK, TOKENIZER, Script, reference_lines

AT_ONCE = RetryPolicy(first_wait_s=0.0)


class GoneForGoodError(WorldError):
    """A world that no other attempt would find in better health."""

    retryable = False


class Failing(CalcEnv):
    """calc that raises `failure`, (place, exception), at reset, at the first step, or at close."""

    def __init__(self, failure: tuple[str, Exception] | None) -> None:
        super().__init__()
        self.place, self.exception = failure or ("", WorldError())

    def _fail(self, place: str) -> None:
        if place == self.place:
            raise self.exception

    async def reset(self, task: Task) -> Sequence[Message]:
        self._fail("reset")
        return await super().reset(task)

    async def step(self, action: Message) -> StepResult:
        self._fail("step")
        return await super().step(action)

    async def close(self) -> None:
        await super().close()
        self._fail("close")


class Player:
    """A policy that plays the reference, from what its prompt shows: it serves any number of episodes.

    Those whose seed is among `wrong` answer 0.
    """

    def __init__(self, wrong: Sequence[int] = ()) -> None:
        self.wrong, self.seeds = wrong, list[int]()

    async def complete(self, prompt_ids: Sequence[int], sampling: Any) -> Any:
        self.seeds.append(sampling.seed)
        num_spoken = TOKENIZER.decode(list(prompt_ids)).count("<|im_start|>assistant") - 1
        lines = reference_lines(TASK)[:3]
        said = "0" if sampling.seed in self.wrong and num_spoken == 2 else lines[num_spoken]
        return await Script(said).complete(prompt_ids, sampling)


async def play(
    *failures: tuple[str, Exception] | None,
    group_size: int = 1,
    index: int = 3,
    retry: RetryPolicy = AT_ONCE,
    policy: Any = None,
    max_wall_s: float = 20,
    reward: Reward = REWARD,
) -> TrajectoryGroup:
    """A group whose environments fail in this order, the members' first attempts first; later ones hold."""
    pending = iter(failures)
    return await run_group(
        TASK,
        replace(CALC, make_env=lambda: Failing(next(pending, None))),
        policy or Player(wrong=[request_seed(0, 7, index, 1, turn) for turn in range(3)]),
        RENDERER,
        reward,
        index=index,
        group_size=group_size,
        trajectory_id=lambda member: f"7-{index}-{member}",
        request_seed=partial(request_seed, 0, 7, index),
        limits=Limits(max_wall_s=max_wall_s),
        context_length=1024,
        retry=retry,
    )
