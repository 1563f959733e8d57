"""Several adapters on one engine, on real vLLM: each name has its own weights, version and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from peft import PeftModel

from envs.policy import Completion, SamplingParams
from rollout.engine import EngineError, VllmEngine
from rollout.engine_adapters import adapter_manifest
from rollout.engine_spec import BASE, POLICY
from tests.made_adapters import TARGETS, make_adapter
from tests.rollout.test_engine import engine_spec
from tests.tiny import load, make_tiny_model, reference_logprobs

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

MAX_GAP = 1e-4
PROMPT = [3 + (7 * place) % 90 for place in range(40)]


@dataclass
class Served:
    """An engine with room for two adapters, and where the folder of each version lies."""

    engine: VllmEngine
    base: Path
    folders: dict[str, Path] = field(default_factory=dict)

    async def load(self, name: str, version: int, folder: Path) -> None:
        await self.engine.receive_adapter(adapter_manifest(folder, version), name=name)
        self.folders[name] = folder

    def model(self, name: str) -> Any:
        """What is to answer for `name`, by transformers and peft."""
        if name == BASE:
            return load(self.base)
        return PeftModel.from_pretrained(load(self.base), str(self.folders[name])).eval()

    async def complete(self, name: str, seed: int = 0, num_tokens: int = 24) -> Completion:
        return await self.engine.complete(
            PROMPT, SamplingParams(max_tokens=num_tokens, seed=seed), adapter=name
        )

    async def ids(self) -> set[int]:
        """What vLLM itself holds."""
        return set(await self.engine._llm.list_loras())


def gap(model: Any, completion: Completion) -> float:
    """Largest |log-prob difference| of the sampled tokens, nats."""
    expected = reference_logprobs(model, [*PROMPT, *completion.token_ids])[len(PROMPT) - 1 :]
    return float(np.abs(expected - completion.logprobs).max())


def versions(completion: Completion) -> set[int]:
    return {span.version for span in completion.version_spans}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    base = make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)
    engine = VllmEngine(replace(engine_spec(base), adapter_rank=4, adapter_targets=TARGETS, num_adapters=2))
    await engine.start()
    yield Served(engine, base)
    await engine.stop()


@pytest.fixture(scope="module")
def adapters(served: Served, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six different ones beside the engine's model."""
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(served.base, folder / str(seed), seed=seed) for seed in range(6)]


async def test_two_adapters_and_the_base_answer_at_once_each_with_its_own_logprobs(
    served: Served, adapters: list[Path]
) -> None:
    assert versions(await served.complete(POLICY)) == {0}  # not loaded yet: the model alone
    await served.load(POLICY, 7, adapters[0])
    await served.load("rival", 3, adapters[1])
    assert len(await served.ids()) == 2
    names = [POLICY, "rival", BASE]
    models = {name: served.model(name) for name in names}
    batch = await asyncio.gather(*(served.complete(name, seed) for seed in range(4) for name in names))
    for place, completion in enumerate(batch):
        name = names[place % 3]
        assert versions(completion) == {{POLICY: 7, "rival": 3, BASE: 0}[name]}
        assert gap(models[name], completion) < MAX_GAP
        # The test can tell them apart: neither of the others answers so.
        assert all(gap(models[other], completion) > 0.1 for other in names if other != name)
    scores = await asyncio.gather(*(served.engine.score(PROMPT, adapter=name) for name in names))
    for name, score in zip(names, scores, strict=True):
        np.testing.assert_allclose(score, reference_logprobs(models[name], PROMPT), atol=MAX_GAP)
    default = await served.engine.complete(PROMPT, SamplingParams(max_tokens=24, seed=0))
    assert default == batch[0]  # where none is named, the policy answers


async def test_one_name_is_updated_three_times_while_the_other_serves_unchanged(
    served: Served, adapters: list[Path]
) -> None:
    await served.load(POLICY, 7, adapters[0])
    await served.load("rival", 3, adapters[1])
    rival, base = await served.complete("rival"), await served.complete(BASE)
    kept = await served.ids()
    for version in (8, 9, 10):
        flights = [asyncio.create_task(served.complete(name, num_tokens=100)) for name in (POLICY, "rival")]
        await asyncio.sleep(0.02)  # in flight
        await served.load(POLICY, version, adapters[version - 6])
        before, beside = await asyncio.gather(*flights)
        assert versions(before) == {version - 1}  # each ended as it began
        assert versions(beside) == {3}
        now = await served.complete(POLICY)
        assert versions(now) == {version}
        assert gap(served.model(POLICY), now) < MAX_GAP
        assert await served.complete("rival") == rival
        assert await served.complete(BASE) == base
        loaded = await served.ids()
        assert len(loaded) == 2  # the version before is gone, also from vLLM
        assert len(loaded & kept) == 1  # of what was there, the rival alone
    assert [await served.engine.served_version(name) for name in (POLICY, "rival", BASE)] == [10, 3, 0]


async def test_a_third_name_is_refused_until_one_is_removed(served: Served, adapters: list[Path]) -> None:
    await served.load(POLICY, 1, adapters[0])
    await served.load("rival", 1, adapters[1])
    before = await served.ids()
    with pytest.raises(
        EngineError, match=r"no room for the adapter 'third': .* made for 2 at once .*'rival'"
    ):
        await served.load("third", 1, adapters[2])
    assert await served.ids() == before
    with pytest.raises(ValueError, match=r"unknown adapter 'rivl'; did you mean 'rival'"):
        await served.complete("rivl")
    flight = asyncio.create_task(served.complete("rival", num_tokens=100))
    await asyncio.sleep(0.02)
    await served.engine.remove_adapter("rival")
    assert versions(await flight) == {1}
    with pytest.raises(ValueError, match="unknown adapter 'rival'"):
        await served.complete("rival")
    await served.load("third", 5, adapters[2])
    assert gap(served.model("third"), await served.complete("third")) < MAX_GAP
    assert len(await served.ids()) == 2
    await served.engine.remove_adapter("third")


async def test_an_adapter_that_the_engine_was_not_made_for_is_refused_and_what_served_serves(
    served: Served, adapters: list[Path], tmp_path: Path
) -> None:
    """vLLM itself would leave out, without a word, modules that it has no room for."""
    await served.load(POLICY, 1, adapters[0])
    large = make_adapter(served.base, tmp_path / "large", seed=1, rank=8)
    wide = make_adapter(served.base, tmp_path / "wide", seed=1, targets=["q_proj", "o_proj"])
    for folder, said in ((large, "has rank 8, .* up to 4"), (wide, "is beside o_proj")):
        with pytest.raises(EngineError, match=said):
            await served.engine.receive_adapter(adapter_manifest(folder, 2))
    with pytest.raises(EngineError, match=r"an adapter needs a name"):
        await served.engine.receive_adapter(adapter_manifest(adapters[1], 2), name=BASE)
    assert await served.engine.served_version() == 1
    assert gap(served.model(POLICY), await served.complete(POLICY)) < MAX_GAP
