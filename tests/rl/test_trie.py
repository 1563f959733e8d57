"""The trie: laid out as the definition says, and the same numbers as every sample computed by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rl.layout import pad
from rl.learner import Learner
from rl.model import PolicyModel
from rl.model_checkpointing import checkpoint_layers
from rl.samples import TrainSample
from rl.trie import make_trie, num_trie_tokens
from rl.trie_attention import _Segments, drivable_layout, drive
from tests.rl.test_learner import learner, multi_turn_batch, weights
from tests.tiny import make_tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def sizes(**others: Any) -> dict[str, Any]:
    return SIZES | others


SLIDING: dict[str, Any] = {
    "head_dim": 32,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**sizes(tie_word_embeddings=True)))


def qwen3() -> nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**sizes(head_dim=32)))


def mixture() -> nn.Module:
    experts = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes(head_dim=32, **experts)))


MODELS = {"llama": llama, "qwen3": qwen3, "mixture": mixture}


def sample(ids: list[int], num_sampled: int, name: str = "a", group: int = 0) -> TrainSample:
    size = len(ids)
    return TrainSample(
        token_ids=np.array(ids, np.int64),
        loss_mask=np.arange(size) >= size - num_sampled,
        rollout_logprobs=np.zeros(size, np.float32),
        versions=np.zeros(size, np.int64),
        turn_ids=np.zeros(size, np.int64),
        trajectory_id=name,
        group_id=group,
        env="",
        weight=1.0,
    )


def group(rng: np.random.Generator, prompt: int, lengths: list[int], number: int = 0) -> list[TrainSample]:
    """Siblings behind one prompt; the second and third share half of what the second said."""
    trunk = rng.integers(0, 97, prompt).tolist()
    said = [rng.integers(0, 97, length).tolist() for length in lengths]
    if len(said) > 2:
        half = min(len(said[1]), len(said[2])) // 2
        said[2][:half] = said[1][:half]
    return [sample(trunk + ids, len(ids), f"{number}-{i}", number) for i, ids in enumerate(said)]


def ragged() -> list[TrainSample]:
    rng = np.random.default_rng(3)
    return [*group(rng, 17, [5, 30, 9, 1], 0), *group(rng, 40, [2, 12], 1), *group(rng, 3, [60], 2)]


def test_the_example_of_the_docstring():
    trie = make_trie([sample([5, 6, 7, 8], 2), sample([5, 6, 9], 1)])
    assert trie.token_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert trie.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert trie.reach.tolist() == [5, 5, 4, 4, 5]
    assert trie.predictors.tolist() == [1, 2, 1]
    assert trie.counts.tolist() == [[2, 2, 1, 1, 1]]
    assert [(s.start, s.end, s.reach, s.is_root) for s in trie.segments] == [
        (0, 2, 5, True),
        (2, 4, 4, False),
        (4, 5, 5, False),
    ]


@pytest.mark.parametrize("seed", range(30))
def test_a_trie_has_each_prefix_once_and_sees_exactly_its_ancestors(seed):
    """By the definition: a token is its prefix, and a prefix sees the prefixes of itself."""
    rng = np.random.default_rng(seed)
    samples = [
        sample(rng.integers(0, 3, rng.integers(2, 12)).tolist(), 1) for _ in range(rng.integers(1, 10))
    ]
    prefixes = {tuple(s.token_ids[: n + 1]) for s in samples for n in range(len(s.token_ids))}
    trie = make_trie(samples)
    assert trie.num_tokens == len(prefixes) == num_trie_tokens(samples)
    places: dict[int, tuple[int, ...]] = {}
    ids, positions, sees = trie.token_ids[0].tolist(), trie.position_ids[0].tolist(), trie.dense_mask
    for place, (token, position) in enumerate(zip(ids, positions, strict=True)):
        ancestors = [other for other in range(place) if sees[place, other]]
        places[place] = (*(ids[other] for other in ancestors), token)
        assert len(ancestors) == position
    assert sorted(places.values()) == sorted(prefixes)
    ends = [segment.end for segment in trie.segments]
    assert [segment.start for segment in trie.segments] == [0, *ends[:-1]]


def test_packed_is_the_same_without_sharing():
    samples = ragged()
    trie = make_trie(samples, shares=False)
    assert trie.num_tokens == sum(len(s.token_ids) for s in samples)
    assert trie.token_ids[0].tolist() == [int(token) for s in samples for token in s.token_ids]
    assert all(segment.is_root and segment.reach == segment.end for segment in trie.segments)


def test_what_the_engine_sent_to_other_experts_is_another_token():
    first, second = sample([1, 2, 3], 1), sample([1, 2, 4], 1)
    routed = np.zeros((3, 2, 1), np.int16)
    other = routed.copy()
    other[1] = 1
    one = make_trie([replace(first, routed_experts=routed), replace(second, routed_experts=routed)])
    two = make_trie([replace(first, routed_experts=routed), replace(second, routed_experts=other)])
    assert (one.num_tokens, two.num_tokens) == (4, 5)
    assert two.routed_experts is not None
    assert two.routed_experts[0, :, 0, 0].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_way_of_attention_is_the_masked_one(dtype):
    trie = make_trie(ragged())
    generator = torch.Generator().manual_seed(0)

    def states(heads: int) -> Tensor:
        x = torch.randn(1, heads, trie.num_tokens, 16, dtype=dtype, generator=generator)
        return x.requires_grad_()

    query, key, value, grad = states(4), states(2), states(2), states(4).detach()
    tolerance = 1e-12 if dtype is torch.float64 else 2e-5
    wanted = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=trie.dense_mask, scale=0.25, enable_gqa=True
    )
    wanted_grads = torch.autograd.grad(wanted, (query, key, value), grad)
    found = _Segments.apply(query, key, value, trie.segments, 0.25)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
    for x, y in zip(torch.autograd.grad(found, (query, key, value), grad), wanted_grads, strict=True):
        torch.testing.assert_close(x, y, atol=10 * tolerance, rtol=0)
    if dtype is torch.float32:  # CUDA's way; on a CPU it has no backward pass
        query, key, value = (x.detach() for x in (query, key, value))
        by_block = flex_attention(query, key, value, block_mask=trie.block_mask, scale=0.25, enable_gqa=True)
        torch.testing.assert_close(by_block, wanted, atol=tolerance, rtol=0)


def logprobs_and_gradient(model: nn.Module, samples: list[TrainSample], layout: str) -> tuple[Tensor, Tensor]:
    """Log-probs of the sampled tokens row by row, and the gradient of their weighted sum, flat."""
    policy = PolicyModel(model, temperature=0.7)
    batch = pad(samples, layout=layout)
    model.zero_grad()
    logprobs = policy(batch).logprobs[batch.loss_mask]
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["trie", "packed"])
def test_a_trie_gives_the_dense_log_probs_and_gradients(name, layout):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    wanted, wanted_grad = logprobs_and_gradient(model, ragged(), "padded")
    assert drive(model) == ""
    found, grad = logprobs_and_gradient(model, ragged(), layout)
    assert float((found - wanted).abs().max()) <= 1e-5
    assert float(functional.cosine_similarity(grad.double(), wanted_grad.double(), dim=0)) >= 1 - 1e-6
    torch.testing.assert_close(grad, wanted_grad, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_it_stays_within_two_hundredths():
    torch.manual_seed(0)
    model = qwen3().eval()
    wanted, wanted_grad = logprobs_and_gradient(model, ragged(), "padded")
    assert drive(model) == ""
    with torch.autocast("cpu", torch.bfloat16):
        found, grad = logprobs_and_gradient(model, ragged(), "trie")
    assert float((found - wanted).abs().max()) <= 2e-2
    assert float(functional.cosine_similarity(grad.double(), wanted_grad.double(), dim=0)) >= 0.999


def test_activation_checkpointing_computes_the_same_gradient():
    torch.manual_seed(0)
    model = qwen3().eval()
    assert drive(model) == ""
    with saved_bytes() as plain:
        _, wanted = logprobs_and_gradient(model, ragged(), "trie")
    checkpoint_layers(model)
    with saved_bytes() as lean:
        _, grad = logprobs_and_gradient(model, ragged(), "trie")
    torch.testing.assert_close(grad, wanted)
    assert lean[0] < 0.5 * plain[0]


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Bytes that are kept for a backward pass, each tensor once."""
    kept: dict[int, int] = {}
    total = [0]

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        total[0] = sum(kept.values())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield total


def test_a_leak_between_siblings_shows():
    """One token of a sibling that is seen moves the log-probs by far more than any tolerance."""
    torch.manual_seed(0)
    model = qwen3().eval()
    assert drive(model) == ""
    batch = pad(ragged(), layout="trie")
    assert batch.trie is not None
    first, second = [s for s in batch.trie.segments if not s.is_root][:2]
    leaky = replace(second, start=first.end - 1) if second.start == first.end else None
    assert leaky is not None
    segments = tuple(leaky if s is second else s for s in batch.trie.segments)
    policy = PolicyModel(model, temperature=1.0)
    with torch.no_grad():
        wanted = policy(batch).logprobs
        found = policy(replace(batch, trie=replace(batch.trie, segments=segments))).logprobs
    assert float((found - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (MistralForCausalLM(MistralConfig(**sizes(sliding_window=16))), "no full attention"),
        (
            Qwen3ForCausalLM(Qwen3Config(**sizes(**SLIDING))),
            "no full attention",
        ),
    ],
)
def test_a_model_that_cannot_be_driven_is_padded_and_says_so_once(model, reason, caplog):
    before = model.config._attn_implementation
    assert drivable_layout("trie", [model, model]) == "padded"
    assert model.config._attn_implementation == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reason in caplog.text


@pytest.mark.parametrize("micro_batch_tokens", [0, 64])
@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_an_update_is_the_same_in_every_layout(tmp_path_factory, layout, micro_batch_tokens):
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)
    results = []
    for chosen, budget in (("padded", 0), (layout, micro_batch_tokens)):
        own: Learner = learner(folder, "grpo", layout=chosen, micro_batch_tokens=budget, micro_batch_size=4)
        row = own.spec.algorithm
        own.update(row.assign_advantages(own.score(multi_turn_batch(folder), row.needs)))
        results.append(weights(own))
    # Adam divides by a gradient's size: where that is rounding, its sign is.
    torch.testing.assert_close(*results, atol=2e-5, rtol=0)
