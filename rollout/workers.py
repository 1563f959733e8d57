"""Ray actors for rollouts: one engine, and every agent that it drives, in one process and one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from envs.registry import resolve_env
from envs.sandbox.policy import DEFAULT_POLICY, SandboxPolicy, use_policy
from rewards.base import resolve_reward
from rewards.judge_asking import OwnPolicy
from rollout.agent import ONE_RETRY, request_seed, run_group
from rollout.collector import GroupRequest
from rollout.engine import AdapterPolicy, EngineSpec, VllmEngine
from rollout.engine_spec import POLICY
from rollout.failures import PeerFailedError, world_cause
from rollout.limits import Limits
from rollout.manifest import Manifest
from rollout.renderer import ChatMLRenderer
from rollout.retry import RetryPolicy
from rollout.tokenizer import load_tokenizer
from rollout.trajectory import TrajectoryGroup
from rollout.weight_sketch import Sketch

T = TypeVar("T")

STOP_S = 10.0
"""For a process to end itself; then it is ended."""


async def within(awaitable: Awaitable[T], deadline_s: float, *, waiter: str, awaited: str) -> T:
    """Await another process, but not for ever. A bug there is raised as it is, with its own traceback.

    Raises:
        PeerFailedError: no answer within `deadline_s` seconds, the peer died, or the world failed it.
    """
    started = time.monotonic()
    try:
        return await asyncio.wait_for(awaitable, deadline_s)
    except RayTaskError as error:  # first: Ray makes it an instance of the peer's TimeoutError as well
        cause = world_cause(cast(Exception, error.cause))
        if cause is None:
            raise
        raise PeerFailedError(f"{awaited} failed: {cause}") from None
    except TimeoutError:
        raise PeerFailedError(
            f"{waiter} waited {deadline_s:g} s for {awaited}, which did not answer"
        ) from None
    except RayActorError as error:
        if error.actor_init_failed:
            raise
        raise PeerFailedError(
            f"{awaited} died {time.monotonic() - started:.1f} s after {waiter} had asked: its process was "
            "killed, or crashed (was there memory left?)"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """Everything one rollout worker is made from; strings and numbers, so that it can be recorded."""

    engine: EngineSpec
    env: str
    reward: str
    limits: Limits
    run_seed: int
    sandbox: SandboxPolicy = DEFAULT_POLICY
    reward_workers: int = 1
    reward_timeout_s: float = 30.0
    retry: RetryPolicy = ONE_RETRY
    reward_python: str = ""
    num_steps: int = 0


class RolloutWorker:
    """One engine and its agents: coroutines of one loop, each awaiting its own tool and the engine.

    Ray sees one call a group, never one a step of an agent.
    """

    def __init__(self, spec: RolloutSpec) -> None:
        self.spec = spec
        use_policy(spec.sandbox)
        self.engine = VllmEngine(spec.engine)
        self.definition = resolve_env(spec.env)
        self.renderer = ChatMLRenderer(load_tokenizer(spec.engine.model))
        own = OwnPolicy(policy=self.engine, renderer=self.renderer, context_length=spec.engine.context_length)
        self.reward = resolve_reward(
            spec.reward,
            self.definition,
            num_workers=spec.reward_workers,
            python=spec.reward_python,
            own=own,
            num_steps=spec.num_steps,
        )

    async def start(self) -> float:
        """Bring the engine up; returns the seconds that took."""
        started = time.monotonic()
        await asyncio.gather(self.engine.start(), self.reward.start())
        return time.monotonic() - started

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        """Run every member of one group to its end."""
        return await run_group(
            request.task,
            self.definition,
            AdapterPolicy(self.engine, request.adapter),
            self.renderer,
            self.reward,
            index=request.index,
            group_size=request.group_size,
            trajectory_id=lambda member: f"{request.step}-{request.index}-{member}",
            request_seed=partial(request_seed, self.spec.run_seed, request.step, request.index),
            limits=self.spec.limits,
            context_length=self.spec.engine.context_length,
            temperature=request.temperature,
            filters=request.filters,
            reward_wall_s=self.spec.reward_timeout_s,
            step=max(request.step, 0),  # measurements are of none
            retry=self.spec.retry,
        )

    async def receive_weights(self, manifest: Mapping[str, Any], drill: str) -> int:
        """Load a policy version; returns the version that new tokens are labelled with."""
        await self.engine.receive_weights(Manifest.from_dict(manifest), drill=drill)
        return await self.engine.served_version()

    async def receive_adapter(self, manifest: Mapping[str, Any], drill: str, name: str) -> int:
        """Load a version of adapter `name`; returns the version that new tokens of it are labelled with."""
        await self.engine.receive_adapter(Manifest.from_dict(manifest), name=name, drill=drill)
        return await self.engine.served_version(name)

    async def prepare_weights(self, manifest: Mapping[str, Any]) -> None:
        await self.engine.prepare_weights(Manifest.from_dict(manifest))

    async def serve_weights(self, version: int) -> int:
        """End a sync; returns the version that new tokens are labelled with."""
        await self.engine.serve_weights(version)
        return await self.engine.served_version()

    # Called by the learner (rl/workers.py: EngineClient), not by the driver.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self.engine.init_weight_transfer_engine(init_info)

    async def start_weight_update(self) -> None:
        await self.engine.start_weight_update()

    async def update_weights(self, update_info: Any) -> None:
        await self.engine.update_weights(update_info)

    async def finish_weight_update(self) -> None:
        await self.engine.finish_weight_update()

    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]:
        return await self.engine.sketch_served_weights(seed)

    async def score(self, sequences: Sequence[Sequence[int]], adapter: str) -> list[np.ndarray]:
        """Log-probabilities of canaries: see VllmEngine.score."""
        scores = (self.engine.score(ids, adapter=adapter) for ids in sequences)
        return list(await asyncio.gather(*scores))

    async def stop(self) -> None:
        await asyncio.gather(self.engine.stop(), self.reward.close())


class RemoteRollouts:
    """The driver's view of one rollout worker (a GroupRunner): every call is awaited with a deadline."""

    def __init__(self, spec: RolloutSpec, *, start_s: float, group_s: float, sync_s: float) -> None:
        self.name = spec.engine.name
        self._start_s, self._group_s, self._sync_s = start_s, group_s, sync_s
        self._actor: Any = (
            ray.remote(RolloutWorker)
            .options(
                name=None,
                num_cpus=spec.engine.num_threads,
                num_gpus=spec.engine.num_gpus,
                # Agents wait for tools and the engine: far more of them than Ray's default of 1,000 may be in
                # flight.
                max_concurrency=10_000,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(spec.engine.num_threads)}},
            )
            .remote(spec)
        )

    @property
    def actor(self) -> Any:
        """The RolloutWorker's handle: on a device channel the learner calls it too."""
        return self._actor

    def _within(self, reference: Awaitable[T], deadline_s: float, what: str) -> Awaitable[T]:
        return within(reference, deadline_s, waiter="the driver", awaited=f"{self.name} ({what})")

    async def start(self) -> float:
        return await self._within(self._actor.start.remote(), self._start_s, "start")

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        return await self._within(
            self._actor.run_group.remote(request), self._group_s, f"group {request.index}"
        )

    async def receive_weights(self, manifest: Manifest, drill: str = "") -> int:
        return await self._within(
            self._actor.receive_weights.remote(manifest.to_dict(), drill), self._sync_s, "weight sync"
        )

    async def receive_adapter(self, manifest: Manifest, drill: str = "", name: str = POLICY) -> int:
        return await self._within(
            self._actor.receive_adapter.remote(manifest.to_dict(), drill, name), self._sync_s, "adapter sync"
        )

    async def prepare_weights(self, manifest: Manifest) -> None:
        await self._within(
            self._actor.prepare_weights.remote(manifest.to_dict()), self._sync_s, "check of a manifest"
        )

    async def serve_weights(self, version: int) -> int:
        return await self._within(self._actor.serve_weights.remote(version), self._sync_s, "end of a sync")

    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]:
        return await self._within(
            self._actor.sketch_served_weights.remote(seed), self._sync_s, "weight sketch"
        )

    async def score(self, sequences: Sequence[Sequence[int]], adapter: str = POLICY) -> list[np.ndarray]:
        return await self._within(self._actor.score.remote(sequences, adapter), self._sync_s, "canaries")

    async def stop(self) -> None:
        """Ask the engine to end its processes, then the actor."""
        try:
            await self._within(self._actor.stop.remote(), STOP_S, "stop")
        finally:
            ray.kill(self._actor)
