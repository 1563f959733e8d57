"""Every way of attention on a real GPU, against the dense mask. Written without a GPU at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl.attention_ways import WAYS, chosen_way, offer_of
from rl.trie import Trie, make_trie
from tests.rl.test_trie import ragged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels of GPUs"),
]


def out_and_grads(way: str, trie: Trie, dtype: torch.dtype, num_keys: int) -> list[Tensor]:
    """Output and gradients to query, key and value, float32."""
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, heads, trie.num_tokens, 64, generator=generator, device="cuda").to(dtype)
        for heads in (4, num_keys, num_keys, 4)
    )
    query, key, value = (x.requires_grad_() for x in (query, key, value))
    out = WAYS[way](query, key, value, trie, 0.125)
    return [x.float() for x in (out, *torch.autograd.grad(out, (query, key, value), grad))]


@pytest.mark.parametrize("num_keys", [2, 4])
@pytest.mark.parametrize(
    ("way", "shares", "dtype"),
    [
        ("varlen", False, torch.bfloat16),
        ("varlen", False, torch.float16),
        ("flex", False, torch.bfloat16),
        ("flex", True, torch.bfloat16),
        ("flex", True, torch.float32),
    ],
)
def test_a_way_gives_what_the_mask_gives(way: str, shares: bool, dtype: torch.dtype, num_keys: int):
    device = torch.device("cuda", 0)
    trie = make_trie(ragged(), shares=shares).to(device)
    assert chosen_way(has_branches=shares, dtype=dtype, head_dim=64, offer=offer_of(device)) in (
        way,
        "varlen",
    )
    wanted = out_and_grads("dense", trie, torch.float32, num_keys)
    found = out_and_grads(way, trie, dtype, num_keys)
    tolerance = 3e-2 if dtype is not torch.float32 else 1e-2  # float32 products may be tf32
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance * float(y.abs().max()), rtol=0)


def test_no_layer_waits_for_the_gpu():
    """What the ways need of a trie is on the device before the second call."""
    trie = make_trie(ragged(), shares=False).to("cuda")
    for way in WAYS:
        out_and_grads(way, trie, torch.bfloat16, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for way in WAYS:
            out_and_grads(way, trie, torch.bfloat16, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
