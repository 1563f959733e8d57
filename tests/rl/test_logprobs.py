"""Chunked log-probs and entropies against the dense definition."""

import math

import pytest
import torch

from rl.logprobs import entropy_of_logits, next_token_targets, scatter_tokens, token_logprobs

N, H, V = 11, 8, 13


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), generator=generator)


def dense(hidden, weight, targets, temperature):
    logits = hidden @ weight.T / temperature
    logprobs = torch.log_softmax(logits, -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs[torch.arange(len(targets)), targets], entropy, logits.exp().sum(-1).log()


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_equal_the_dense_definition_in_value_and_gradient(chunk_size, temperature):
    hidden, weight, targets = inputs()
    expected = dense(hidden, weight, targets, temperature)
    actual = token_logprobs(
        hidden, weight, targets, temperature=temperature, chunk_size=chunk_size, entropy_gradient=True
    )
    for ours, definition in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, definition)
        weights = torch.arange(1.0, N + 1, dtype=torch.float64)
        gradients = (
            torch.autograd.grad((weights * values).sum(), (hidden, weight), retain_graph=True)
            for values in (ours, definition)
        )
        torch.testing.assert_close(*gradients)


def test_bfloat16_inputs_give_float32_within_the_rounding_of_the_logits():
    hidden, weight, targets = inputs(torch.bfloat16)
    logprobs, entropy, _ = token_logprobs(hidden, weight, targets, head_dtype=torch.bfloat16)
    assert logprobs.dtype is entropy.dtype is torch.float32
    # The same bfloat16 logits, their softmax in float64: only float32's own rounding may be between the two.
    exact = torch.log_softmax((hidden @ weight.T).double(), -1)
    torch.testing.assert_close(
        logprobs.double(), exact[torch.arange(N), targets], atol=2e-6, rtol=0, check_dtype=False
    )
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype is torch.bfloat16


def test_the_head_runs_in_float32_by_default_whatever_the_body_and_autocast_say():
    hidden, weight, targets = inputs(torch.bfloat16)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)[torch.arange(N), targets]
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _, _ = token_logprobs(hidden, weight, targets)
        low, _, _ = token_logprobs(hidden, weight, targets, head_dtype=torch.bfloat16)
    torch.testing.assert_close(logprobs.double(), exact, atol=2e-6, rtol=0)
    assert (low.double() - exact).abs().max() > 1e-3  # what the default avoids


def test_the_entropy_carries_no_gradient_unless_asked():
    hidden, weight, targets = inputs()
    logprobs, entropy, _ = token_logprobs(hidden, weight, targets)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_no_more_rows_of_logits_than_a_chunk_exist_at_a_time():
    # Without checkpoints, every intermediate (chunk, V) is saved for the backward pass.
    hidden, weight, targets = inputs()
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        token_logprobs(hidden, weight, targets, chunk_size=2)
    assert not any(len(shape) == 2 and shape[1] == V for shape in saved)


def test_no_tokens_give_no_log_probs_and_a_graph():
    hidden, weight, targets = inputs()
    logprobs, entropy, _ = token_logprobs(hidden[:0], weight, targets[:0])
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_entropy_of_masked_logits_is_finite_in_value_and_gradient():
    # Two equal logits left: ln 2, where it is stationary.
    logits = torch.tensor([[1.0, 1.0, -float("inf"), -float("inf")]], requires_grad=True)
    entropy = entropy_of_logits(logits)
    assert entropy.item() == pytest.approx(math.log(2))
    entropy.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4), atol=1e-7, rtol=0)


def test_the_shift_by_one_pairs_a_token_with_the_state_before_it():
    #             t = 0  1  2  3
    token_ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    loss_mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    states, targets = next_token_targets(hidden, token_ids, loss_mask)
    assert states[:, 0].tolist() == [1.0, 2.0, 4.0]
    assert targets.tolist() == [7, 8, 10]


def test_scattered_values_are_at_their_own_tokens():
    loss_mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    padded = scatter_tokens(values, loss_mask)
    assert padded.tolist() == [[0, 0, 1, 2], [0, 3, 0, 0]]
    (padded * torch.arange(8.0).reshape(2, 4)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [2.0, 3.0, 5.0]
