"""publish: every engine gets the learner's weights, and proves that it serves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rollout.manifest import Manifest, WeightSyncError
from rollout.weight_sketch import Sketch, compare_sketches

# A canary answer that moved by less than this (nats) did not move: float32 noise is below 1e-5.
MOVED = 1e-4


class Sender(Protocol):
    """The learner, as a sync sees it."""

    async def publish(self, version: int) -> Manifest: ...
    async def sketch_weights(self, seed: int) -> dict[str, Sketch]: ...
    async def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...


class Receiver(Protocol):
    """An engine, as a sync sees it."""

    name: str

    async def receive_weights(self, manifest: Manifest, drill: str = "") -> int: ...
    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]: ...
    async def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...


class HasRunners(Protocol):
    """The engines of a run."""

    @property
    def runners(self) -> Sequence[Receiver]: ...


class WeightSync:
    """Carries policy versions to the engines. Every publish is proven, or the run stops.

    `canaries` are fixed token sequences that both sides score after each sync; `gap_limit` (nats) is the
    largest difference allowed on any of their tokens; `drill` breaks the first sync (rollout/sabotage.py).
    """

    def __init__(
        self, *, canaries: Sequence[Sequence[int]], gap_limit: float, engine_dtype: str, drill: str = ""
    ) -> None:
        self.version = 0
        self.canaries = canaries
        self.gap_limit = gap_limit
        self.engine_dtype = engine_dtype
        self.num_bytes = 0
        self._drill = drill
        self._last_answers: dict[str, np.ndarray] = {}

    async def publish(
        self, learner: Sender, rollouts: HasRunners, *, version: int | None = None
    ) -> dict[str, float]:
        """pi_old <- pi_theta on every engine. `version` defaults to the next one.

        Raises:
            WeightSyncError: an engine labels tokens with another version, serves another tensor (it is
            named), or
                answers a canary otherwise than the learner, or as before although the learner's answer moved.
        """
        started = time.monotonic()
        receivers = rollouts.runners
        self.version = self.version + 1 if version is None else version
        manifest = await learner.publish(self.version)
        self.num_bytes = manifest.num_bytes
        labels = await asyncio.gather(*(r.receive_weights(manifest, self._drill) for r in receivers))
        for receiver, label in zip(receivers, labels, strict=True):
            if label != self.version:
                raise WeightSyncError(
                    f"{receiver.name} labels tokens as version {label} after version {self.version}"
                )
        loaded = time.monotonic()
        gap = await self._prove(learner, receivers)
        return {
            "sync/seconds": time.monotonic() - started,
            "sync/proof_seconds": time.monotonic() - loaded,
            "sync/bytes": float(manifest.num_bytes * len(receivers)),
            "sync/canary_gap_max": gap,
        }

    async def _prove(self, learner: Sender, receivers: Sequence[Receiver]) -> float:
        """The largest canary gap, once every engine has shown the learner's weights."""
        seed = self.version & 0xFFFF
        expected, wanted = await asyncio.gather(
            learner.sketch_weights(seed), learner.score_sequences(self.canaries)
        )
        answer = np.concatenate(wanted)
        gaps = [await self._prove_one(receiver, expected, answer, seed) for receiver in receivers]
        self._last_answers["learner"] = answer
        return max(gaps)

    async def _prove_one(
        self, receiver: Receiver, expected: dict[str, Sketch], answer: np.ndarray, seed: int
    ) -> float:
        served, scores = await asyncio.gather(
            receiver.sketch_served_weights(seed), receiver.score(self.canaries)
        )
        compare_sketches(served, expected, dtype=self.engine_dtype, who=receiver.name)
        given = np.concatenate(scores)
        gap = float(np.abs(given - answer).max())
        if not gap <= self.gap_limit:
            raise WeightSyncError(
                f"{receiver.name} answers the canaries up to {gap:.2e} nats off the learner at version "
                f"{self.version}; the limit is {self.gap_limit:.2e}. Every tensor matches, so look at the "
                f"model code "
                f"and dtypes of both sides"
            )
        before, learner_before = self._last_answers.get(receiver.name), self._last_answers.get("learner")
        if before is not None and learner_before is not None:
            moved = float(np.abs(answer - learner_before).max())
            if moved > MOVED and np.array_equal(given, before):
                raise WeightSyncError(
                    f"{receiver.name} answers the canaries exactly as before version {self.version}, "
                    f"although the "
                    f"learner's answer moved by {moved:.2e} nats: it does not serve what was loaded"
                )
        self._last_answers[receiver.name] = given
        return gap
