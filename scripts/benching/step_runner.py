"""Our whole step, one a command: vLLM samples, the learner updates, the engine gets the weights.

    python -m scripts.benching.step_runner '{"model": FOLDER, "context_length": 1024}'

All in this process, as one thread's work: what Ray would carry between processes is not in it. Lengths are
forced by sampling without an end, up to the batch's lengths.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch

from envs.policy import SamplingParams
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.weight_sync import WeightSync
from rollout.engine import EngineSpec, VllmEngine
from rollout.manifest import Manifest
from rollout.weight_sketch import Sketch
from scripts.benching.commands import Commands
from scripts.benching.learner_runner import ALGORITHM
from scripts.benching.train_batches import to_train_batch
from scripts.benching.workload import FIRST_WORD, VOCAB_SIZE, Batch, share_of_even

NUM_CANARIES, CANARY_LENGTH, GAP_LIMIT = 4, 64, 1e-4
"""A run's defaults (recipes/launch.py, rl/config.py)."""


class NearLearner:
    """A learner in this process, as WeightSync's sender."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    async def publish(self, version: int) -> Manifest:
        manifest = self._learner.publish(version)
        assert manifest is not None  # the only rank writes
        return manifest

    async def sketch_weights(self, seed: int) -> dict[str, Sketch]:
        return self._learner.sketch_weights(seed)

    async def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self._learner.score_sequences(sequences)


class NearEngine:
    """An engine in this process, as WeightSync's only receiver."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine, self.name = engine, engine.spec.name
        self.runners = (self,)

    async def receive_weights(self, manifest: Manifest, drill: str = "") -> int:
        await self._engine.receive_weights(manifest, drill=drill)
        return await self._engine.served_version()

    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]:
        return await self._engine.sketch_served_weights(seed)

    async def score(self, sequences: Sequence[Sequence[int]], adapter: str) -> list[np.ndarray]:
        return list(await asyncio.gather(*(self._engine.score(ids, adapter=adapter) for ids in sequences)))


class StepRunner:
    """An engine, a learner, and a run's own sync between them: every one is proven."""

    def __init__(self, engine: VllmEngine, learner: Learner) -> None:
        self.engine, self.learner = engine, learner
        drawn = random.Random(0)
        length = min(CANARY_LENGTH, engine.spec.context_length - 1)  # a token is generated behind each
        canaries = [drawn.choices(range(FIRST_WORD, VOCAB_SIZE), k=length) for _ in range(NUM_CANARIES)]
        self.sync: Any = WeightSync(canaries=canaries, gap_limit=GAP_LIMIT, engine_dtype="float32")

    @classmethod
    async def start(cls, options: dict[str, Any]) -> StepRunner:
        engine = VllmEngine(
            EngineSpec(
                name="bench",
                model=options["model"],
                device="cpu",
                dtype="float32",
                context_length=options["context_length"],
                max_num_seqs=64,
                weight_transfer_backend="whetstone_shm",
            )
        )
        await engine.start()
        learner = Learner(
            LearnerSpec(
                model=options["model"], algorithm=ALGORITHM, learning_rate=1e-5, num_updates=1_000_000
            )
        )
        return cls(engine, learner)

    async def step(self, path: str) -> dict[str, Any]:
        """CPU seconds of each part, all processes of this one's counted."""
        wanted = Batch.load(path)
        marks = [cpu_s()]
        completions = await asyncio.gather(
            *(
                self.engine.complete(prompt, SamplingParams(max_tokens=len(completion)))
                for prompt, completion in wanted.pairs
            )
        )
        marks.append(cpu_s())
        sampled = [list(completion.token_ids) for completion in completions]
        if list(map(len, sampled)) != list(map(len, wanted.completions)):
            raise RuntimeError(f"lengths {[*map(len, sampled)]} were generated")
        batch = to_train_batch(
            Batch(prompts=wanted.prompts, completions=sampled, rewards=list(map(share_of_even, sampled)))
        )
        samples = []
        for sample, completion in zip(batch.samples, completions, strict=True):
            logprobs = sample.rollout_logprobs.copy()
            logprobs[sample.loss_mask] = completion.logprobs
            samples.append(replace(sample, rollout_logprobs=logprobs))
        batch = replace(batch, samples=tuple(samples))
        scored = self.learner.score(batch, ALGORITHM.needs_for(1))
        marks.append(cpu_s())
        sums = self.learner.update(scored)
        marks.append(cpu_s())
        await self.sync.publish(NearLearner(self.learner), NearEngine(self.engine))
        marks.append(cpu_s())
        gap = max(
            float(abs(own[sample.loss_mask] - sample.rollout_logprobs[sample.loss_mask]).max())
            for own, sample in zip(scored.old_logprobs or self.learner.own_logprobs(), samples, strict=True)
        )
        parts = ("generate", "score", "update", "sync")
        return {
            "cpu_s": marks[-1] - marks[0],
            **{part: b - a for part, a, b in zip(parts, marks, marks[1:], strict=False)},
            "gap": gap,
            "num_trained": wanted.num_trained,
            "num_metrics": len(sums),
        }


def cpu_s() -> float:
    """User and system time of this process and of all below it, ended ones included."""
    own = psutil.Process(os.getpid())
    times = [own.cpu_times(), *(child.cpu_times() for child in own.children(recursive=True))]
    ended = times[0].children_user + times[0].children_system
    return sum(time.user + time.system for time in times) + ended


async def serve() -> None:
    commands = Commands()
    torch.set_num_threads(1)
    runner = await StepRunner.start(json.loads(sys.argv[1]))
    for command in commands:
        do = command.pop("do")
        commands.answer(**await getattr(runner, do)(**command))
    runner.learner.close()
    await runner.engine.stop()


if __name__ == "__main__":
    asyncio.run(serve())
