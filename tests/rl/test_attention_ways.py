"""Which way of attention a GPU gets, and that what it is handed says what the trie says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from rl import trie_attention
from rl.attention_ways import Offer, chosen_way, dense, offer_of
from rl.trie import make_trie
from rl.trie_attention import drive
from tests.rl.test_trie import MODELS, logprobs_and_gradient, ragged, sample

HOPPER = Offer(capability=(9, 0), has_flash=True, has_triton=True)
TURING = replace(HOPPER, capability=(7, 5))
PASCAL = replace(HOPPER, capability=(6, 1))
NO_FLASH = replace(HOPPER, has_flash=False)
NO_TRITON = replace(HOPPER, has_triton=False)
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("has_branches", "dtype", "head_dim", "offer", "way"),
    [
        (False, BF16, 128, HOPPER, "varlen"),
        (False, FP16, 64, HOPPER, "varlen"),
        (True, BF16, 128, HOPPER, "flex"),
        (False, FP32, 128, HOPPER, "flex"),
        (True, FP32, 128, HOPPER, "flex"),
        (False, FP64, 128, HOPPER, "dense"),
        (False, BF16, 256, HOPPER, "varlen"),
        (False, BF16, 264, HOPPER, "flex"),
        (False, BF16, 100, HOPPER, "flex"),
        (False, BF16, 8, HOPPER, "varlen"),
        (True, BF16, 8, HOPPER, "dense"),
        (False, BF16, 128, NO_FLASH, "flex"),
        (False, BF16, 128, NO_TRITON, "varlen"),
        (True, BF16, 128, NO_TRITON, "dense"),
        (False, FP32, 128, NO_TRITON, "dense"),
        (False, FP16, 128, TURING, "flex"),
        (True, FP32, 128, TURING, "flex"),
        (True, BF16, 128, TURING, "dense"),
        (True, FP16, 128, PASCAL, "dense"),
    ],
)
def test_the_way_is_the_fastest_that_fits(has_branches, dtype, head_dim, offer, way):
    assert chosen_way(has_branches=has_branches, dtype=dtype, head_dim=head_dim, offer=offer) == way


def test_a_cpu_offers_no_kernel_of_a_gpu():
    offer = offer_of(torch.device("cpu"))
    assert offer.capability == (0, 0)
    for has_branches in (False, True):
        assert chosen_way(has_branches=has_branches, dtype=BF16, head_dim=64, offer=offer) == "dense"


def test_boundaries_are_those_of_the_segments():
    trie = make_trie(ragged(), shares=False).to("cpu")
    assert not trie.has_branches
    lengths = [len(s.token_ids) for s in ragged()]
    assert trie.boundaries.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert trie.boundaries.dtype is torch.int32
    assert trie.longest == max(lengths)
    spans = [(segment.start, segment.end) for segment in trie.segments]
    edges = trie.boundaries.tolist()
    assert list(pairwise(edges)) == spans
    # What FlashAttention makes of them, causal within each, is the mask.
    row = torch.bucketize(torch.arange(trie.num_tokens), trie.boundaries[1:], right=True)
    assert torch.equal((row[:, None] == row[None]).tril(), trie.dense_mask)


def test_a_shared_prefix_is_a_branch_and_samples_that_share_nothing_are_none():
    assert make_trie(ragged()).has_branches
    assert not make_trie([sample([1, 2, 3], 1), sample([2, 2, 3], 1)]).has_branches
    assert make_trie([sample([1, 2], 1), sample([1, 2, 3], 1), sample([1, 3], 1)]).has_branches


def test_masks_and_boundaries_are_made_once():
    trie = make_trie(ragged())
    assert trie.dense_mask is trie.dense_mask
    assert trie.boundaries is trie.boundaries
    assert trie.block_mask is trie.block_mask


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["trie", "packed"])
def test_the_dense_way_gives_the_log_probs_and_gradients_of_the_cpus(name, layout, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    assert drive(model) == ""
    wanted, wanted_grad = logprobs_and_gradient(model, ragged(), layout)
    calls = []

    def by_mask(query, key, value, trie, scale):
        calls.append(scale)
        return dense(query, key, value, trie, scale)

    monkeypatch.setattr(trie_attention, "segmented", by_mask)
    found, grad = logprobs_and_gradient(model, ragged(), layout)
    assert len(calls) == 3  # layers
    assert float((found - wanted).abs().max()) <= 1e-5
    assert float(functional.cosine_similarity(grad.double(), wanted_grad.double(), dim=0)) >= 1 - 1e-6
    torch.testing.assert_close(grad, wanted_grad, atol=1e-4, rtol=1e-4)
