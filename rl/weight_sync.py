"""publish: every engine gets the learner's weights, and proves that it serves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rollout.engine_spec import POLICY
from rollout.manifest import Manifest, WeightSyncError
from rollout.weight_sketch import Sketch, compare_sketches

# A canary answer that moved by less than this (nats) did not move: float32 noise is below 1e-5.
MOVED = 1e-4

# An engine serves the decoy when its answers are so many times nearer to that than to the learner's.
DECOY_RATIO = 4.0


class Sender(Protocol):
    """The learner, as a sync sees it."""

    async def connect(self, backend: str, engines: Sequence[Any]) -> None: ...
    async def publish(self, version: int) -> Manifest: ...
    async def send_weights(self) -> None: ...
    async def sketch_weights(self, seed: int) -> dict[str, Sketch]: ...
    async def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...
    async def score_base_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...


class Receiver(Protocol):
    """An engine, as a sync sees it."""

    name: str

    async def receive_weights(self, manifest: Manifest, drill: str = "") -> int: ...
    async def receive_adapter(self, manifest: Manifest, drill: str = "", name: str = POLICY) -> int: ...
    async def prepare_weights(self, manifest: Manifest) -> None: ...
    async def serve_weights(self, version: int) -> int: ...
    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]: ...
    async def score(self, sequences: Sequence[Sequence[int]], adapter: str = POLICY) -> list[np.ndarray]: ...


class HasRunners(Protocol):
    """The engines of a run."""

    @property
    def runners(self) -> Sequence[Receiver]: ...


class Transfer(Protocol):
    """How the bytes of a published version get into the engines; chosen once, by the run's weight channel."""

    @property
    def adapter(self) -> str:
        """Who is asked whether it serves what was brought."""
        ...

    async def connect(self, learner: Sender, receivers: Sequence[Any]) -> None:
        """Open the channel, once, when learner and engines are up."""

    async def carry(
        self, learner: Sender, receivers: Sequence[Receiver], manifest: Manifest, drill: str
    ) -> list[int]:
        """Bring `manifest` to every engine; returns the versions that they label new tokens with."""
        ...

    async def decoy(self, learner: Sender, canaries: Sequence[Sequence[int]]) -> np.ndarray | None:
        """What an engine would answer that has what was brought and does not serve it; None: not known."""
        ...


class EnginesLoad:
    """Shared memory: every engine loads the file that the manifest names."""

    adapter = POLICY

    async def connect(self, learner: Sender, receivers: Sequence[Any]) -> None:
        """Nothing to open."""

    async def carry(
        self, learner: Sender, receivers: Sequence[Receiver], manifest: Manifest, drill: str
    ) -> list[int]:
        return await asyncio.gather(*(r.receive_weights(manifest, drill) for r in receivers))

    async def decoy(self, learner: Sender, canaries: Sequence[Sequence[int]]) -> None:
        """Not known: the weights that served before are gone."""


@dataclass(frozen=True, slots=True)
class EnginesLoadAdapter:
    """Files on this host: every engine loads the folder that the manifest names, beside its frozen model.

    Runs that share engines each have an `adapter` of their own there (and in their CollectorSpec), which
    answers from its first publish on; EngineSpec.num_adapters makes room for them.
    """

    adapter: str = POLICY

    async def connect(self, learner: Sender, receivers: Sequence[Any]) -> None:
        """Nothing to open."""

    async def carry(
        self, learner: Sender, receivers: Sequence[Receiver], manifest: Manifest, drill: str
    ) -> list[int]:
        return await asyncio.gather(*(r.receive_adapter(manifest, drill, self.adapter) for r in receivers))

    async def decoy(self, learner: Sender, canaries: Sequence[Sequence[int]]) -> np.ndarray:
        """The model without its adapter."""
        return np.concatenate(await learner.score_base_sequences(canaries))


@dataclass(frozen=True, slots=True)
class LearnerSends:
    """A device channel of vLLM's (its registry's name): the learner pushes while every engine holds still.

    The loading is vLLM's own code, so there is nothing of ours for a drill to break: rl/validation.py refuses
    one. Not yet run on a GPU.
    """

    backend: str
    adapter = POLICY

    async def connect(self, learner: Sender, receivers: Sequence[Any]) -> None:
        await learner.connect(self.backend, receivers)

    async def carry(
        self, learner: Sender, receivers: Sequence[Receiver], manifest: Manifest, drill: str
    ) -> list[int]:
        await asyncio.gather(*(r.prepare_weights(manifest) for r in receivers))
        await learner.send_weights()
        return await asyncio.gather(*(r.serve_weights(manifest.version) for r in receivers))

    async def decoy(self, learner: Sender, canaries: Sequence[Sequence[int]]) -> None:
        """Not known, as with shared memory."""


SHARED_MEMORY = EnginesLoad()
ADAPTER_FILES = EnginesLoadAdapter()


class WeightSync:
    """Carries policy versions to the engines. Every publish is proven, or the run stops.

    `transfer` moves the bytes; `canaries` are fixed token sequences that both sides score after each sync;
    `gap_limit` (nats) is the largest difference allowed on any of their tokens; `drill` breaks the first sync
    (rollout/sabotage.py).
    """

    def __init__(
        self,
        *,
        canaries: Sequence[Sequence[int]],
        gap_limit: float,
        engine_dtype: str,
        drill: str = "",
        transfer: Transfer = SHARED_MEMORY,
    ) -> None:
        self.version = 0
        self.canaries = canaries
        self.gap_limit = gap_limit
        self.engine_dtype = engine_dtype
        self.num_bytes = 0
        self._drill = drill
        self._transfer = transfer
        self._last_answers: dict[str, np.ndarray] = {}

    async def connect(self, learner: Sender, rollouts: HasRunners) -> None:
        """Open the weight channel; once, before the first publish."""
        await self._transfer.connect(learner, rollouts.runners)

    async def publish(
        self, learner: Sender, rollouts: HasRunners, *, version: int | None = None
    ) -> dict[str, float]:
        """pi_old <- pi_theta on every engine. `version` defaults to the next one.

        Raises:
            WeightSyncError: an engine labels tokens with another version, serves another tensor (it is
                named), or answers a canary otherwise than the learner, or as before although the learner's
                answer moved.
        """
        started = time.monotonic()
        receivers = rollouts.runners
        self.version = self.version + 1 if version is None else version
        manifest = await learner.publish(self.version)
        self.num_bytes = manifest.num_bytes
        labels = await self._transfer.carry(learner, receivers, manifest, self._drill)
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
        decoy = await self._transfer.decoy(learner, self.canaries)
        gaps = [await self._prove_one(receiver, expected, answer, seed, decoy) for receiver in receivers]
        self._last_answers["learner"] = answer
        return max(gaps)

    async def _prove_one(
        self,
        receiver: Receiver,
        expected: dict[str, Sketch],
        answer: np.ndarray,
        seed: int,
        decoy: np.ndarray | None,
    ) -> float:
        served, scores = await asyncio.gather(
            receiver.sketch_served_weights(seed), receiver.score(self.canaries, self._transfer.adapter)
        )
        compare_sketches(served, expected, dtype=self.engine_dtype, who=receiver.name)
        given = np.concatenate(scores)
        gap = float(np.abs(given - answer).max())
        if decoy is not None and _is_of_decoy(given, answer, decoy):
            raise WeightSyncError(
                f"{receiver.name} serves the base: at version {self.version} it answers the canaries up to "
                f"{gap:.2e} nats off the learner, and within {float(np.abs(given - decoy).max()):.2e} as the "
                "model without its adapter"
            )
        if not gap <= self.gap_limit:
            raise WeightSyncError(
                f"{receiver.name} answers the canaries up to {gap:.2e} nats off the learner at version "
                f"{self.version}; the limit is {self.gap_limit:.2e}. Every tensor matches, so look at the "
                "model code and dtypes of both sides"
            )
        before, learner_before = self._last_answers.get(receiver.name), self._last_answers.get("learner")
        if before is not None and learner_before is not None:
            moved = float(np.abs(answer - learner_before).max())
            if moved > MOVED and np.array_equal(given, before):
                raise WeightSyncError(
                    f"{receiver.name} answers the canaries exactly as before version {self.version}, "
                    f"although the learner's answer moved by {moved:.2e} nats: it does not serve what was "
                    "loaded"
                )
        self._last_answers[receiver.name] = given
        return gap


def _is_of_decoy(given: np.ndarray, answer: np.ndarray, decoy: np.ndarray) -> bool:
    """Whether what an engine has given is the decoy's and not the learner's answer, each (n,) nats.

    Both are known but for rounding, in bfloat16 1e-3 nats a token: an adapter that moves answers by less than
    that cannot be told from none, and nothing is said.
    """
    from_learner, from_decoy = (float(np.abs(given - known).mean()) for known in (answer, decoy))
    return from_learner > MOVED and DECOY_RATIO * from_decoy < from_learner
