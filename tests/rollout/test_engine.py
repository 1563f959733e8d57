"""The engine and the weight sync, on real vLLM.

What it serves is what the learner holds, or the sync says no.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import Qwen3ForCausalLM

from envs.base import EngineRequestError
from envs.policy import Completion, SamplingFilters, SamplingParams
from rl.distributions import top_tokens
from rl.logprobs import token_logprobs
from rl.weights import SharedWeights, perturb, sketch_weights
from rollout.engine import EngineError, EngineSpec, VllmEngine
from rollout.manifest import Manifest, WeightSyncError
from rollout.sabotage import DRILLS
from rollout.weight_sketch import compare_sketches
from tests.tiny import load, make_tiny_mixture, make_tiny_model, reference_logprobs

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_GAP = 1e-4


@dataclass
class Pair:
    """An engine and the model whose weights it is to serve."""

    engine: VllmEngine
    model: Qwen3ForCausalLM
    shared: SharedWeights
    version: int = 0

    def change_weights(self) -> Manifest:
        """A non-zero update of every tensor, published."""
        self.version += 1
        perturb(self.model, 0.3, seed=self.version)
        return self.shared.write(self.version)

    async def proven(self) -> None:
        served = await self.engine.sketch_served_weights(self.version)
        expected = sketch_weights(self.model, torch.float32, self.version)
        compare_sketches(served, expected, dtype="float32", who="engine")

    async def gap(self, seed: int = 0) -> float:
        """Largest |log-prob difference| on freshly sampled tokens, prompt and all."""
        prompt = [3 + seed % 7] * 50
        completion = await self.engine.complete(prompt, SamplingParams(max_tokens=30, seed=seed))
        reference = reference_logprobs(self.model, [*prompt, *completion.token_ids])[len(prompt) - 1 :]
        return float(np.abs(reference - completion.logprobs).max())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["tied", "untied", "mixture"])
async def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "mixture":
        make_tiny_mixture(folder)
    else:
        make_tiny_model(folder, tied=request.param == "tied")
    engine = VllmEngine(engine_spec(folder))
    await engine.start()
    model = load(folder)
    shared = SharedWeights(f"test-{request.param}", model, torch.float32)
    yield Pair(engine, model, shared)
    await engine.stop()
    shared.close()


def engine_spec(folder: Path) -> EngineSpec:
    return EngineSpec(
        name="engine",
        model=str(folder),
        device="cpu",
        dtype="float32",
        context_length=256,
        max_num_seqs=64,
        weight_transfer_backend="whetstone_shm",
    )


@pytest.fixture
def drills(pair: Pair) -> list[str]:
    tied = pair.model.config.tie_word_embeddings
    return [name for name in DRILLS if tied or name != "no_retie"]


async def test_logprobs_equal_transformers_before_and_after_three_updates(pair: Pair) -> None:
    assert await pair.gap() < MAX_GAP
    for update in range(3):
        await pair.engine.receive_weights(pair.change_weights())
        assert await pair.engine.served_version() == pair.version
        await pair.proven()
        # The same prompt as before: keys and values of the old weights would answer from the prefix cache.
        assert await pair.gap(seed=0) < MAX_GAP
        assert await pair.gap(seed=update) < MAX_GAP


async def test_filters_are_sampled_from_and_are_in_the_log_probs(pair: Pair) -> None:
    """Each log-prob is that of the distribution that was left, as rl.distributions has it."""
    prompt = [3 + index % 7 for index in range(50)]
    for filters in (SamplingFilters(top_p=0.6), SamplingFilters(top_k=3), SamplingFilters(min_p=0.3)):
        sampling = SamplingParams(max_tokens=30, seed=1, temperature=0.1, filters=filters)
        completion = await pair.engine.complete(prompt, sampling)
        ids = [*prompt, *completion.token_ids]
        with torch.no_grad():
            logits = pair.model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1] / 0.1
        likely = logits >= logits.amax(-1, keepdim=True) + np.log(filters.min_p or 1e-30)
        kept = likely & top_tokens(logits, top_k=filters.top_k, top_p=filters.top_p)
        assert (kept.sum(-1) < logits.shape[-1]).all()
        expected = torch.where(kept, logits, -torch.inf).log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(completion.logprobs, chosen, atol=MAX_GAP)


async def under_way(llm) -> None:
    for _ in range(5000):
        if llm.output_processor.request_states:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("no request came")


async def test_a_request_that_is_given_up_or_fails_is_not_the_engines_death(pair: Pair) -> None:
    """One is aborted from outside, one meets an error in vLLM's client; the engine answers on."""
    llm, prompt = pair.engine._llm, [3 + index % 7 for index in range(50)]
    long = asyncio.ensure_future(pair.engine.complete(prompt, SamplingParams(max_tokens=200, seed=1)))
    await under_way(llm)
    (external,) = llm.output_processor.external_req_ids
    await llm.abort(external)
    assert (await long).finish_reason == "abort"
    doomed = asyncio.ensure_future(pair.engine.complete(prompt, SamplingParams(max_tokens=200, seed=1)))
    await under_way(llm)
    (state,) = llm.output_processor.request_states.values()
    state.queue.put(RuntimeError("the cache was lost"))
    with pytest.raises(EngineRequestError, match=r"request .* failed: RuntimeError.*the cache was lost"):
        await doomed
    assert await pair.gap(seed=3) < MAX_GAP


async def test_kept_ids_are_those_that_could_be_drawn_and_reproduce_the_engines_log_probs(pair: Pair) -> None:
    prompt = [3 + index % 7 for index in range(50)]
    for filters in (
        SamplingFilters(top_k=1, return_kept=True),
        SamplingFilters(top_k=20, return_kept=True),
        SamplingFilters(top_k=6, top_p=0.8, min_p=0.05, return_kept=True),
    ):
        sampling = SamplingParams(max_tokens=30, seed=1, temperature=0.7, filters=filters)
        completion = await pair.engine.complete(prompt, sampling)
        assert completion.kept_ids is not None
        sizes = {len(kept) for kept in completion.kept_ids}
        assert max(sizes) <= filters.top_k
        if filters.top_p == 1:
            assert sizes == {filters.top_k}
        ids = torch.tensor([*prompt, *completion.token_ids])
        kept = torch.tensor([[*row, *[-1] * (filters.top_k - len(row))] for row in completion.kept_ids])
        with torch.no_grad():
            states = pair.model.model(ids[None]).last_hidden_state[0, len(prompt) - 1 : -1]
            ours, _, _ = token_logprobs(
                states, pair.model.lm_head.weight, ids[len(prompt) :], temperature=0.7, kept_ids=kept
            )
        np.testing.assert_allclose(completion.logprobs, ours.numpy(), atol=MAX_GAP)
    whole = await pair.engine.complete(prompt, SamplingParams(max_tokens=3, seed=1))
    assert whole.kept_ids is None


async def test_an_update_driven_by_the_learner_is_served_its_head_included(pair: Pair) -> None:
    """The calls of ipc and nccl, over shared memory; `no_retie`, since vLLM's own backends re-tie nothing."""
    manifest = pair.change_weights()
    await pair.engine.prepare_weights(manifest)
    await pair.engine.start_weight_update()
    await pair.engine.update_weights({"manifest": manifest.to_dict(), "drill": "no_retie"})
    await pair.engine.finish_weight_update()
    await pair.engine.serve_weights(manifest.version)
    assert await pair.engine.served_version() == manifest.version
    await pair.proven()
    assert await pair.gap() < MAX_GAP


async def test_seeded_prompts_beyond_the_token_budget_do_not_stop_the_engine(pair: Pair) -> None:
    prompts = [[3 + i % 90] * (100 + i) for i in range(64)]
    assert sum(map(len, prompts)) > 2 * 4096  # the engine's max_num_batched_tokens
    sampling = [SamplingParams(max_tokens=8, seed=i) for i in range(64)]
    completions = await asyncio.gather(*map(pair.engine.complete, prompts, sampling))
    assert [len(completion.token_ids) for completion in completions] == [8] * 64
    again = await asyncio.gather(*map(pair.engine.complete, prompts, sampling))
    assert again == completions  # one engine thread: bit-equal, whatever shares the batch


async def test_a_completion_ends_at_its_stop_token_and_keeps_it(pair: Pair) -> None:
    free = await pair.engine.complete([5] * 40, SamplingParams(max_tokens=20, seed=4))
    stop = free.token_ids[7]
    first = free.token_ids.index(stop)
    stopped = await pair.engine.complete(
        [5] * 40, SamplingParams(max_tokens=20, seed=4, stop_token_ids=(stop,))
    )
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert (free.finish_reason, stopped.finish_reason) == ("length", "stop")


async def test_tokens_sampled_across_an_update_carry_both_versions(pair: Pair) -> None:
    old = pair.version
    running = asyncio.create_task(pair.engine.complete([9] * 8, SamplingParams(max_tokens=240, seed=1)))
    await asyncio.sleep(0.05)
    await pair.engine.receive_weights(pair.change_weights())
    completion: Completion = await running
    assert [span.version for span in completion.version_spans] == [old, pair.version]


async def test_every_sabotage_is_caught_and_names_its_tensor(pair: Pair, drills: list[str]) -> None:
    config = pair.model.config
    first_expert = "experts.0." if hasattr(config, "num_experts") else ""
    culprits = {
        "skip_tensor": f"layers.0.mlp.{first_expert}down_proj.weight differs",
        "skip_fused_half": "layers.0.self_attn.k_proj.weight differs",
        "swap_rows": f"o_proj.weight differs in 2 of {config.hidden_size} rows, the first is row 0",
        "no_retie": "lm_head.weight differs",
        "dead_copy": "model.norm.weight differs",
    }
    for drill in drills:
        await pair.engine.receive_weights(pair.change_weights(), drill=drill)
        with pytest.raises(WeightSyncError, match=culprits[drill]) as caught:
            await pair.proven()
        if drill != "dead_copy":
            assert str(caught.value).count("differs") == 1
        await pair.engine.receive_weights(pair.change_weights())
        await pair.proven()


async def test_a_wrong_manifest_is_refused_before_anything_is_loaded(pair: Pair) -> None:
    good = pair.change_weights()
    await pair.engine.receive_weights(good)
    first, *rest = good.tensors
    flipped = replace(first, crc32=first.crc32 ^ 1)
    wrong = {
        f"missing {first.name}": tuple(rest),
        f"{first.name} sent 2 times": (first, first, *rest),
        "unknown model.extra.weight": (*good.tensors, replace(first, name="model.extra.weight")),
        f"{first.name} has shape": (replace(first, shape=(first.shape[0] - 1, first.shape[1])), *rest),
        f"do not match the manifest's CRC: {first.name}": (flipped, *rest),
        f"{first.name} is short": (replace(first, offset=good.num_bytes), *rest),
    }
    for complaint, tensors in wrong.items():
        with pytest.raises(EngineError, match=complaint):
            await pair.engine.receive_weights(replace(good, tensors=tensors))
        await pair.proven()
        assert await pair.gap() < MAX_GAP


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
async def test_a_mixture_in_a_narrow_dtype_is_proven_through_its_kernels_packing(
    tmp_path: Path, dtype: str
) -> None:
    """On a CPU with AMX bfloat16 has a packing of its own."""
    folder = make_tiny_mixture(tmp_path)
    engine, model = VllmEngine(replace(engine_spec(folder), dtype=dtype)), load(folder)
    shared = SharedWeights(f"test-{dtype}", model, getattr(torch, dtype))
    await engine.start()
    try:
        for version in (1, 2):
            perturb(model, 0.3, seed=version)
            await engine.receive_weights(shared.write(version))
            expected = sketch_weights(model, getattr(torch, dtype), version)
            served = await engine.sketch_served_weights(version)
            compare_sketches(served, expected, dtype=dtype, who="engine")
        perturb(model, 1e-2, seed=3)
        stale = sketch_weights(model, getattr(torch, dtype), version)
        with pytest.raises(WeightSyncError, match=r"experts\.3\.up_proj\.weight differs in 32 of 32"):
            compare_sketches(served, stale, dtype=dtype, who="engine")
    finally:
        await engine.stop()
        shared.close()


async def test_scored_canaries_equal_transformers(pair: Pair) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(3, 100, size=60)]
    for _ in range(2):  # the second time the prompt is in the prefix cache
        np.testing.assert_allclose(
            await pair.engine.score(ids), reference_logprobs(pair.model, ids), atol=MAX_GAP
        )
