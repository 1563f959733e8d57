"""The learner as a Ray actor, and the driver's view of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from rl.batch import TrainBatch
from rl.determinism import EXACT_ENVIRONMENT
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import MetricSums
from rl.transport import crossing
from rollout.manifest import Manifest
from rollout.weight_sketch import Sketch
from rollout.workers import STOP_S, RemoteRollouts, within


class LearnerClient:
    """The driver's view of a learner, in whatever processes it is. Every call is awaited with a deadline.

    `take_seconds` gives the wall seconds spent in score and update since it was last asked.
    """

    name = "learner"

    def __init__(self, *, deadline_s: float, sync_s: float) -> None:
        self._deadline_s, self._sync_s = deadline_s, sync_s
        self._seconds = {"score": 0.0, "update": 0.0}
        self._has_updated = False

    async def _ask(self, method: str, *arguments: Any, deadline_s: float, what: str) -> Any:
        """What the learner's `method` returns."""
        raise NotImplementedError

    async def start(self) -> dict[str, float]:
        """Wait until the model is loaded; returns its facts."""
        return await self._ask("facts", deadline_s=self._deadline_s, what="start")

    async def score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch:
        """Add what is needed to the batch; see Learner.score."""
        with self._timed("score"):
            if not needs and self._has_updated:
                await self._ask("expect_update", deadline_s=self._deadline_s, what="score")
                return batch
            return await self._score(batch, needs)

    async def _score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch:
        return await self._ask("score", crossing(batch), needs, deadline_s=self._deadline_s, what="score")

    async def update(self, minibatch: Any) -> MetricSums:
        """One optimizer update, on the kind of batch that the learner takes."""
        self._has_updated = True
        with self._timed("update"):
            return await self._ask("update", crossing(minibatch), deadline_s=self._deadline_s, what="update")

    async def with_old_logprobs(self, batch: TrainBatch) -> TrainBatch:
        """The batch with old_logprobs: where it was not scored, those that its only update started from."""
        if batch.old_logprobs is not None:
            return batch
        made = await self._ask("own_logprobs", deadline_s=self._deadline_s, what="own log-probs")
        return replace(batch, old_logprobs=made)

    async def connect(self, backend: str, engines: Sequence[RemoteRollouts]) -> None:
        """Open a device channel from the learner to the engines' actors."""
        client = EngineClient([engine.actor for engine in engines], deadline_s=self._sync_s)
        await self._ask("connect", backend, client, len(engines), deadline_s=self._sync_s, what="connect")

    async def publish(self, version: int) -> Manifest:
        return await self._ask("publish", version, deadline_s=self._sync_s, what="publish")

    async def send_weights(self) -> None:
        await self._ask("send_weights", deadline_s=self._sync_s, what="sending weights")

    async def sketch_weights(self, seed: int) -> dict[str, Sketch]:
        return await self._ask("sketch_weights", seed, deadline_s=self._sync_s, what="sketch")

    async def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return await self._ask("score_sequences", sequences, deadline_s=self._sync_s, what="canaries")

    async def score_base_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return await self._ask(
            "score_base_sequences", sequences, deadline_s=self._sync_s, what="canaries of the base"
        )

    async def perturb(self, scale: float, seed: int) -> None:
        await self._ask("perturb", scale, seed, deadline_s=self._deadline_s, what="perturb")

    async def restore(self) -> None:
        await self._ask("restore", deadline_s=self._deadline_s, what="restore")

    async def checkpoint(self, path: str, run_state: dict[str, Any]) -> None:
        await self._ask("checkpoint", path, run_state, deadline_s=self._deadline_s, what="checkpoint")

    async def resume(self, path: str) -> None:
        await self._ask("resume", path, deadline_s=self._deadline_s, what="resume")

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - started

    def take_seconds(self) -> dict[str, float]:
        """Wall seconds of scoring and of updating since last asked."""
        taken, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return {f"time/{name}_s": seconds for name, seconds in taken.items()}

    async def stop(self) -> None:
        """Give back what outlives its processes, then end them."""
        try:
            await self._ask("close", deadline_s=STOP_S, what="stop")
        finally:
            self._kill()

    def _kill(self) -> None:
        """End the learner's processes, whatever they do."""
        raise NotImplementedError


class RemoteLearner(LearnerClient):
    """A learner, of the class `kind`, in an actor of its own."""

    def __init__(
        self, spec: LearnerSpec, *, deadline_s: float, sync_s: float, kind: type[Learner] = Learner
    ) -> None:
        super().__init__(deadline_s=deadline_s, sync_s=sync_s)
        self._actor: Any = actor_of(kind, spec).remote(spec)

    async def _ask(self, method: str, *arguments: Any, deadline_s: float, what: str) -> Any:
        reference = getattr(self._actor, method).remote(*arguments)
        return await within(reference, deadline_s, waiter="the driver", awaited=f"the learner ({what})")

    def _kill(self) -> None:
        ray.kill(self._actor)


def actor_of(kind: type, spec: LearnerSpec, **environment: str) -> Any:
    """`kind` as a Ray actor with the CPU threads, GPUs and environment of a learner."""
    variables = {"OMP_NUM_THREADS": str(spec.num_threads)} | LEARNER_ENVIRONMENT | environment
    return ray.remote(kind).options(
        num_cpus=spec.num_threads,
        num_gpus=spec.num_gpus,
        runtime_env={"env_vars": variables | (EXACT_ENVIRONMENT if spec.exact else {})},
    )


class EngineClient:
    """Every engine of a run as one `VLLMWeightSyncClient` (vllm 0.32 `distributed/weight_transfer/base.py`).

    It lives in the learner's process. A call reaches all engines (RolloutWorker actors) at the same time and
    waits for all of them, `deadline_s` seconds at most.

    Raises (each method):
        EngineError: an engine failed.
        TimeoutError: an engine did not answer in time.
    """

    def __init__(self, engines: Sequence[Any], *, deadline_s: float) -> None:
        self._engines, self._deadline_s = engines, deadline_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._wait(
            engine.init_weight_transfer_engine.remote(ranked(init_info, number))
            for number, engine in enumerate(self._engines)
        )

    def start_weight_update(self) -> None:
        self._wait(engine.start_weight_update.remote() for engine in self._engines)

    def update_weights(self, update_info: Any) -> None:
        self._wait(engine.update_weights.remote(update_info) for engine in self._engines)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update. Versions are set by serve_weights, never from here."""
        if weight_version is not None:
            raise ValueError(
                f"weight_version = {weight_version!r}: serve_weights labels versions; leave it out"
            )
        self._wait(engine.finish_weight_update.remote() for engine in self._engines)

    def _wait(self, references: Iterable[Any]) -> None:
        try:
            ray.get(list(references), timeout=self._deadline_s)
        except RayTaskError as error:
            raise error.cause from error


def ranked(init_info: dict[str, Any], number: int) -> dict[str, Any]:
    """`init_info` for engine `number`: with nccl each has a rank of its own in the group, 1 + number.

    vLLM counts ranks within one engine only, and would give every engine the same.
    """
    offsets = {key: value + number for key, value in init_info.items() if key == "rank_offset"}
    return init_info | offsets


LEARNER_ENVIRONMENT = {
    # The first touch of memory dominates a training step on small machines (7 to 48 times a second touch):
    # keep what was allocated instead of giving it back to the kernel after every step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Threads that wait for each other sleep. Spinning, two on a core shared with anything else are half as
    # fast as one; asleep, as fast, and 1.45 times on idle cores (measured on two cores).
    "OMP_WAIT_POLICY": "PASSIVE",
}
