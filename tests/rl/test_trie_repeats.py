"""Threads of one learner: what they add up does not depend on which of them comes first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rl.trie_attention import drive
from tests.rl.test_trie import group, logprobs_and_gradient, qwen3


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_siblings_that_share_a_predictor_have_the_same_gradient_every_time():
    torch.manual_seed(0)
    model = qwen3().eval()
    assert drive(model) == ""
    samples = group(np.random.default_rng(0), 8, [16] * 48)  # enough states for torch to share them out
    _, first = logprobs_and_gradient(model, samples, "trie")
    again = [logprobs_and_gradient(model, samples, "trie")[1] for _ in range(12)]
    assert [number for number, gradient in enumerate(again) if not torch.equal(gradient, first)] == []
