"""The head and its log-softmax, a block of logits at a time: log-probs, gradient, and entropies in passing.

Log-probs take one product with the head, their gradient three: the logits again, and a product for each of
states and head. Where what the loss will ask for, d loss / d log π of each token, is known beforehand, the
gradient is made in the forward pass, and of the four products three are left (rl/foreseen.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 2e-5
"""Largest difference between what the loss asks for and what was foreseen, relative to the largest of them,
that still counts as rounding (float32 log-probs are some 2e-6 off). Beyond it the gradient is made again."""

CACHED = 2**20
"""Logits that a CPU's cache holds: so many are gone over several times before the next ones are."""

FAR = -800.0
"""exp of it is 0, in float64 as well."""


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        foreseen: Tensor | None,
        temperature: float,
        chunk_size: int,
        entropy_every: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, grads = _passed(
            hidden, weight, targets, foreseen, temperature, chunk_size, entropy_every, ctx.needs_input_grad
        )
        ctx.save_for_backward(hidden, weight, targets, foreseen, *grads)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, foreseen, *grads = ctx.saved_tensors
        scale = None if foreseen is None else scale_between(foreseen, grad)
        if scale is None:
            del grads
            options = ctx.temperature, ctx.chunk_size, 0, ctx.needs_input_grad
            _, _, grads = _passed(hidden, weight, targets, grad, *options)
        elif scale != 1.0:
            grads = [each if each is None else each * scale for each in grads]
        return *grads, None, None, None, None, None


def _passed(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    asked: Tensor | None,
    temperature: float,
    chunk_size: int,
    entropy_every: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    """Log-probs (N,), entropies (N,), and, where `asked` (N,) is there, the gradient of Σ asked log π to
    `hidden` and `weight`, as they are `needed`.
    """
    logprobs = hidden.new_empty(len(targets))
    entropies = torch.full_like(logprobs, torch.nan)
    grad_hidden = torch.empty_like(hidden) if needed[0] and asked is not None else None
    grad_weight = torch.zeros_like(weight) if needed[1] and asked is not None else None
    buffer = hidden.new_empty(min(chunk_size, len(targets)), len(weight))
    num_cached = max(1, CACHED // len(weight)) if hidden.device.type == "cpu" else chunk_size
    for start in range(0, len(targets), chunk_size):
        rows = slice(start, start + chunk_size)
        states = hidden[rows]
        logits = torch.mm(states / temperature, weight.T, out=buffer[: len(states)])
        for first in range(start, start + len(states), num_cached):
            block = slice(first, min(first + num_cached, start + len(states)))
            looked_at = slice(-first % entropy_every, None, entropy_every) if entropy_every else slice(0)
            logprobs[block], entropies[block][looked_at] = _softmax(
                logits[first - start : block.stop - start],
                targets[block, None],
                None if asked is None else asked[block, None] / temperature,
                looked_at,
            )
        if grad_hidden is not None:
            torch.mm(logits, weight, out=grad_hidden[rows])
        if grad_weight is not None:
            grad_weight.addmm_(logits.T, states)
    return logprobs, entropies, (grad_hidden, grad_weight)


def _softmax(logits: Tensor, places: Tensor, asked: Tensor | None, looked_at: slice) -> tuple[Tensor, Tensor]:
    """Make `asked` * d log π(y) / d logits of logits (n, V), in place, or with None exp of them less their
    largest; `places` and `asked` are (n, 1).

    Returns:
        log π(y) (n,), and the entropies of the rows `looked_at`.
    """
    logits -= logits.amax(1, keepdim=True)
    chosen = logits.gather(1, places)
    kept = logits[looked_at].clone()
    sums = logits.exp_().sum(1, keepdim=True)
    log_z = sums.log()
    # Σ π (log Z - x); where π is 0 x may be -inf.
    means = torch.linalg.vecdot(logits[looked_at], kept.clamp_(min=FAR)) / sums[looked_at, 0]
    if asked is not None:
        # d log π(y) / d logits = onehot(y) - π.
        logits.mul_(-asked / sums).scatter_add_(1, places, asked)
    return (chosen - log_z)[:, 0], log_z[looked_at, 0] - means


def scale_between(foreseen: Tensor, asked: Tensor) -> float | None:
    """The number (a loss scale, most often 1) by which `foreseen` is `asked`, within TOLERANCE; else None."""
    square = float(foreseen.double().square().sum())
    if not square:
        return None if bool(asked.any()) else 1.0
    scale = float((foreseen.double() * asked).sum()) / square
    if abs(scale - 1.0) <= TOLERANCE:
        scale = 1.0
    gap = float((asked - scale * foreseen).abs().max())
    return scale if gap <= TOLERANCE * float(asked.abs().max()) else None


def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    foreseen: Tensor | None = None,
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
    entropy_every: int = 0,
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden weightᵀ / temperature) at the targets (N,), and entropies (N,); float32 or wider.

    `chunk_size` rows of logits exist at a time. Gradients of gradients are not to be had.

    Args:
        hidden: (N, H).
        weight: (V, H), the head.
        targets: (N,) int64.
        foreseen: (N,), d loss / d log π as the loss is expected to ask for it, where that is known. Where it
            asks for something else by more than TOLERANCE the gradient is made twice, the second time right.
        temperature: divides the logits, above 0.
        chunk_size: rows of logits at a time.
        entropy_every: k, to have the entropy of tokens 0, k, 2k, .. in passing, without a gradient; NaN at
            the others. 0: of none.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return _FusedHead.apply(
            hidden.to(wide),
            weight.to(wide),
            targets,
            None if foreseen is None or not torch.is_grad_enabled() else foreseen.to(wide),
            temperature,
            chunk_size,
            entropy_every,
        )
