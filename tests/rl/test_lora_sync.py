"""An adapter alone goes to the engine: the learner's answers come back; a base that answers is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from envs.policy import SamplingParams
from rl.algorithms import get_algorithm
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.lora_settings import LoraSpec
from rl.weight_sync import SHARED_MEMORY, EnginesLoadAdapter, WeightSync
from rollout.engine import EngineError, VllmEngine
from rollout.engine_spec import POLICY
from rollout.manifest import Manifest, WeightSyncError
from rollout.weight_sketch import Sketch, compare_sketches
from tests.rl.test_lora import adapter_of, base_bytes
from tests.rollout.test_engine import engine_spec
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_GAP = 1e-4
TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
CANARIES = [[5 + (7 * row + 3 * column) % 100 for column in range(48)] for row in range(3)]


@dataclass
class HereLearner:
    """A learner of this process as a Sender."""

    learner: Learner

    async def connect(self, backend: str, engines: Sequence[Any]) -> None:
        raise AssertionError("files need no channel")

    async def publish(self, version: int) -> Manifest:
        return self.learner.publish(version)

    async def send_weights(self) -> None:
        self.learner.send_weights()

    async def sketch_weights(self, seed: int) -> dict[str, Sketch]:
        return self.learner.sketch_weights(seed)

    async def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self.learner.score_sequences(sequences)

    async def score_base_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self.learner.score_base_sequences(sequences)


@dataclass
class HereEngine:
    """An engine of this process as a Receiver, and as the rollouts that hold it."""

    engine: VllmEngine
    name: str = "engine 0"

    @property
    def runners(self) -> Sequence[Any]:
        return [self]

    async def receive_weights(self, manifest: Manifest, drill: str = "") -> int:
        await self.engine.receive_weights(manifest, drill=drill)
        return await self.engine.served_version()

    async def receive_adapter(self, manifest: Manifest, drill: str = "", name: str = POLICY) -> int:
        await self.engine.receive_adapter(manifest, drill=drill, name=name)
        return await self.engine.served_version(name)

    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]:
        return await self.engine.sketch_served_weights(seed)

    async def score(self, sequences: Sequence[Sequence[int]], adapter: str = POLICY) -> list[np.ndarray]:
        return list(await asyncio.gather(*(self.engine.score(ids, adapter=adapter) for ids in sequences)))


@dataclass
class Pair:
    learner: Learner
    engine: HereEngine

    def sync(self, drill: str = "", gap_limit: float = MAX_GAP, adapter: str = POLICY) -> WeightSync:
        return WeightSync(
            canaries=CANARIES,
            gap_limit=gap_limit,
            engine_dtype="float32",
            drill=drill,
            transfer=EnginesLoadAdapter(adapter),
        )

    async def publish(self, sync: WeightSync, version: int) -> dict[str, float]:
        return await sync.publish(HereLearner(self.learner), self.engine, version=version)

    async def loaded(self) -> set[int]:
        return await self.engine.engine._adapters.loaded()

    async def gap(self, seed: int, adapter: str = POLICY) -> float:
        """Largest |log-prob difference| on freshly sampled tokens of one prompt."""
        prompt, sampling = [9] * 40, SamplingParams(max_tokens=24, seed=seed)
        completion = await self.engine.engine.complete(prompt, sampling, adapter=adapter)
        (answer,) = self.learner.score_sequences([[*prompt, *completion.token_ids]])
        return float(np.abs(answer[len(prompt) - 1 :] - completion.logprobs).max())


def lora_learner(folder: Path, **fields: Any) -> Learner:
    row = get_algorithm("dr_grpo")
    return Learner(
        LearnerSpec(
            model=str(folder), algorithm=row, learning_rate=1e-2, num_updates=9, run_name="t", **fields
        )
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["tied", "untied"])
async def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param == "tied")
    engine = VllmEngine(replace(engine_spec(folder), adapter_rank=4, adapter_targets=TARGETS, num_adapters=2))
    await engine.start()
    learner = lora_learner(folder, lora=LoraSpec(rank=4, alpha=8.0, serves_adapter=True))
    yield Pair(learner, HereEngine(engine))
    learner.close()
    await engine.stop()


async def test_every_version_is_served_as_an_adapter_and_the_base_stays(pair: Pair) -> None:
    assert await pair.gap(seed=0) < MAX_GAP  # the model alone, and a fresh adapter adds nothing
    sync, base = pair.sync(), base_bytes(pair.learner)
    for version in range(1, 4):
        pair.learner.perturb(0.05, seed=version)
        metrics = await pair.publish(sync, version)
        saved = sum(tensor.nbytes for tensor in adapter_of(pair.learner).parameters())
        assert metrics["sync/bytes"] == saved == pair.learner.facts()["sync_bytes"]
        assert metrics["sync/canary_gap_max"] < 1e-5
        assert await pair.gap(seed=0) < MAX_GAP  # the same prompt: the prefix cache holds the version before
        assert len(await pair.loaded()) == 1
    served = await pair.engine.sketch_served_weights(7)
    compare_sketches(served, pair.learner.sketch_weights(7), dtype="float32", who="engine")
    assert base_bytes(pair.learner) == base


async def test_a_request_in_flight_ends_with_the_adapter_that_it_began_with(pair: Pair) -> None:
    sync = pair.sync()
    await pair.publish(sync, 10)
    before = await pair.loaded()
    prompt = [9] * 40
    alone = await pair.engine.engine.complete(prompt, SamplingParams(max_tokens=120, seed=3))
    flight = asyncio.create_task(pair.engine.engine.complete(prompt, SamplingParams(max_tokens=120, seed=3)))
    await asyncio.sleep(0.02)  # it is in flight
    pair.learner.perturb(0.05, seed=11)
    manifest = pair.learner.publish(11)
    await pair.engine.receive_adapter(manifest)
    assert before < await pair.loaded()  # both: the old one still answers
    completion = await flight
    assert [(span.version, span.start, span.end) for span in completion.version_spans] == [(10, 0, 120)]
    assert completion.token_ids == alone.token_ids
    np.testing.assert_allclose(completion.logprobs, alone.logprobs, atol=1e-5)
    assert not before & await pair.loaded()
    assert len(await pair.loaded()) == 1


async def test_two_runs_share_an_engine_and_each_proves_its_own_adapter(pair: Pair) -> None:
    spec = replace(pair.learner.spec, run_name="other")
    other = Pair(Learner(spec), pair.engine)
    pairs, syncs = (pair, other), (pair.sync(), other.sync(adapter="other"))
    try:
        for version in (14, 15):
            for number, (one, sync) in enumerate(zip(pairs, syncs, strict=True)):
                one.learner.perturb(0.05, seed=version + 7 * number)
                assert (await one.publish(sync, version))["sync/canary_gap_max"] < 1e-5
            assert await pair.gap(seed=0) < MAX_GAP
            assert await other.gap(seed=0, adapter="other") < MAX_GAP
            assert await pair.gap(seed=0, adapter="other") > 0.1  # they are not the same
        with pytest.raises(WeightSyncError, match="version 16"):
            await other.publish(pair.sync("no_adapter"), 16)  # the other run's weights under the first name
        assert await other.gap(seed=0, adapter="other") < MAX_GAP
    finally:
        other.learner.close()
        await pair.engine.engine.remove_adapter("other")
        await pair.publish(pair.sync(), 17)


@pytest.mark.parametrize("gap_limit", [MAX_GAP, 100.0])
async def test_an_engine_that_answers_as_the_base_stops_the_run(pair: Pair, gap_limit: float) -> None:
    pair.learner.perturb(0.05, seed=20)
    with pytest.raises(WeightSyncError, match="engine 0 serves the base: at version 20"):
        await pair.publish(pair.sync("no_adapter", gap_limit), 20)
    await pair.publish(pair.sync(), 20)


async def test_files_that_are_not_what_was_published_are_refused_and_the_old_adapter_serves(
    pair: Pair,
) -> None:
    await pair.publish(pair.sync(), 30)
    pair.learner.perturb(0.05, seed=31)
    manifest = pair.learner.publish(31)
    file = Path(manifest.path) / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineError, match=r"do not match the manifest's CRC: base_model.*lora_[AB]"):
        await pair.engine.receive_adapter(manifest)
    assert await pair.engine.engine.served_version() == 30
    pair.learner.restore()
    assert await pair.gap(seed=5) < MAX_GAP


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_frozen_base_is_bit_identical_after_a_hundred_syncs(pair: Pair) -> None:
    base, served = base_bytes(pair.learner), await pair.engine.sketch_served_weights(1)
    sync = pair.sync()
    for version in range(100, 200):
        pair.learner.perturb(0.02, seed=version)
        await pair.publish(sync, version)
    assert base_bytes(pair.learner) == base
    for name, sketch in (await pair.engine.sketch_served_weights(1)).items():
        np.testing.assert_array_equal(sketch.columns, served[name].columns)
        np.testing.assert_array_equal(sketch.product, served[name].product)
    assert len(await pair.loaded()) == 1


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.timeout(300)
async def test_the_base_is_bit_identical_after_a_hundred_merged_syncs(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, tied=True)
    engine = VllmEngine(engine_spec(folder))
    await engine.start()
    learner = lora_learner(folder, lora=LoraSpec(rank=4, alpha=8.0))
    base = base_bytes(learner)
    sync = WeightSync(canaries=CANARIES, gap_limit=MAX_GAP, engine_dtype="float32", transfer=SHARED_MEMORY)
    try:
        for version in range(1, 101):
            with torch.no_grad():
                for tensor in adapter_of(learner).parameters():
                    tensor.add_(0.01 * torch.randn(tensor.shape))
            await sync.publish(HereLearner(learner), HereEngine(engine), version=version)
        assert base_bytes(learner) == base
    finally:
        learner.close()
        await engine.stop()
