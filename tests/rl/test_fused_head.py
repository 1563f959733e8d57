"""The head that makes its gradient beforehand: the plain one's numbers, also where it was told wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rl import learner as learner_module
from rl.algorithms import get_algorithm
from rl.foreseen import foreseen_gradient
from rl.fused_head import fused_logprobs, scale_between
from rl.logprobs import token_logprobs
from tests.rl.test_learner import learner, multi_turn_batch
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def head(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(num_tokens, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(31, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, 31, (num_tokens,), generator=generator)
    return states, weight, targets, torch.randn(num_tokens, dtype=torch.float64, generator=generator)


def plain_logprobs(states: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """torch's own cross-entropy of a head."""
    return -functional.linear_cross_entropy(states / temperature, weight, targets, reduction="none")


@pytest.mark.parametrize("num_tokens", [0, 1, 300])
@pytest.mark.parametrize("told", ["right", "scaled", "nearly", "wrong", "zeros", "nothing"])
def test_gradients_are_those_of_the_plain_head_whatever_was_foreseen(num_tokens, told):
    states, weight, targets, asked = head(num_tokens)
    foreseen = {
        "right": asked,
        "scaled": asked / 1024,  # a loss scale, or the number of ranks
        "nearly": asked * (1 + 1e-9),
        "wrong": asked.flip(0) + 0.1,
        "zeros": torch.zeros_like(asked),
        "nothing": None,
    }[told]
    wanted = plain_logprobs(states, weight, targets, 0.7)
    found, _ = fused_logprobs(states, weight, targets, foreseen, temperature=0.7)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    for x, y in zip(
        torch.autograd.grad(found, (states, weight), asked),
        torch.autograd.grad(wanted, (states, weight), asked),
        strict=True,
    ):
        torch.testing.assert_close(x, y, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("told", [True, False])
def test_of_a_frozen_head_no_gradient_is_made(told):
    states, weight, targets, asked = head(300)
    found, _ = fused_logprobs(states, weight.detach(), targets, asked if told else None)
    (found * asked).sum().backward()
    plain, _ = fused_logprobs(states.detach().clone().requires_grad_(), weight, targets)
    assert plain.requires_grad
    wanted = plain_logprobs(states, weight.detach(), targets, 1.0)
    torch.testing.assert_close(
        states.grad, torch.autograd.grad(wanted, states, asked)[0], atol=1e-8, rtol=1e-8
    )
    assert weight.grad is None
    with torch.no_grad():
        scored, _ = fused_logprobs(states, weight, targets, asked if told else None)
    torch.testing.assert_close(scored, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("every", [0, 1, 7])
@pytest.mark.parametrize("chunk_size", [256, 64, 5])  # a chunk begins anywhere between two that are looked at
def test_entropies_are_had_in_passing(every, chunk_size):
    states, weight, targets, asked = head(300)
    told = {"temperature": 0.7, "chunk_size": chunk_size, "entropy_every": every}
    _, found = fused_logprobs(states, weight, targets, asked, **told)
    wanted = torch.full_like(found, torch.nan)
    if every:
        wanted[::every] = token_logprobs(states, weight, targets, temperature=0.7)[1][::every].detach()
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0, equal_nan=True)
    assert not found.requires_grad


def test_logits_beyond_what_exp_holds_and_ids_that_cannot_be_drawn():
    states = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[1e4], [-1e4], [0.0], [-torch.inf]], requires_grad=True)
    logprobs, entropy = fused_logprobs(states[:1], weight, torch.tensor([0]), torch.ones(1), entropy_every=1)
    assert (float(logprobs.detach()), float(entropy)) == (0.0, 0.0)


def test_what_is_more_than_rounding_away_is_no_scale():
    asked = torch.tensor([1.0, -2.0, 3.0])
    assert scale_between(asked, asked) == 1.0
    assert scale_between(asked, 8 * asked) == pytest.approx(8.0)
    assert scale_between(asked, asked + torch.tensor([0.0, 0.01, 0.0])) is None
    assert scale_between(torch.zeros(3), asked) is None
    assert scale_between(torch.zeros(3), torch.zeros(3)) == 1.0
    assert scale_between(torch.full((3,), torch.nan), asked) is None


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "gspo", "cispo", "rloo", "reinforce"])
def test_an_update_is_the_same_with_and_without_it(folder, algorithm, monkeypatch):
    results = []
    for told in (foreseen_gradient, lambda *_: None):
        monkeypatch.setattr(learner_module, "foreseen_gradient", told)
        own = learner(folder, algorithm)
        batch = own.score(multi_turn_batch(folder), own.spec.algorithm.needs)
        batch = own.spec.algorithm.assign_advantages(batch)
        sums = own.update(batch)
        gradient = torch.cat([p.grad.flatten() for p in own.model.parameters()])
        results.append((gradient, float(sums["policy/loss"].values)))
    (first, loss), (second, plain_loss) = results
    assert float((first - second).norm() / second.norm()) < 1e-5
    assert loss == pytest.approx(plain_loss, abs=1e-5)


def test_it_is_foreseen_only_where_the_loss_looks_at_log_probs_alone(folder):
    own = learner(folder, "grpo")
    row = own.spec.algorithm
    batch = row.assign_advantages(own.score(multi_turn_batch(folder), row.needs))
    layout = batch.padded()
    found = foreseen_gradient(row, layout, batch.counts)
    assert found is not None
    # On policy: -A, weighted as the row weighs tokens; nothing where the advantage is 0.
    assert found.shape == (int(layout.loss_mask.sum()),)
    assert layout.advantages is not None
    signs = torch.sign(layout.advantages[layout.loss_mask])
    assert torch.equal(torch.sign(found), -signs)
    assert foreseen_gradient(row, replace(layout, old_logprobs=None), batch.counts) is None
    assert foreseen_gradient(get_algorithm("grpo", entropy_coeff=0.1), layout, batch.counts) is None
    assert foreseen_gradient(get_algorithm("ppo"), layout, batch.counts) is None
