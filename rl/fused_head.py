"""The head with its gradient made in the forward pass, where what the loss will ask for is known beforehand.

Recomputing the logits for the backward pass is a fourth product with the head beside three. A loss that is
given log-probs asks for d loss / d log π of each token, and on the first update after a score these log-probs
are old_logprobs: then it can be asked before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Largest difference between what the loss asks for and what was foreseen, relative to the largest of them,
that still counts as rounding. Beyond it the gradient is computed again, exactly."""

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
        foreseen: Tensor,
        temperature: float,
        chunk_size: int,
        entropy_every: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(len(targets))
        entropies = torch.full_like(logprobs, torch.nan)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        buffer = hidden.new_empty(min(chunk_size, len(targets)), len(weight))
        num_cached = max(1, CACHED // len(weight)) if hidden.device.type == "cpu" else chunk_size
        for start in range(0, len(targets), chunk_size):
            rows = slice(start, start + chunk_size)
            states = hidden[rows]
            logits = torch.mm(states / temperature, weight.T, out=buffer[: len(states)])
            for first in range(start, start + len(states), num_cached):
                block = slice(first, min(first + num_cached, start + len(states)))
                looked_at = slice(-first % entropy_every, None, entropy_every) if entropy_every else slice(0)
                logprobs[block], entropies[block][looked_at] = _to_gradient(
                    logits[first - start : block.stop - start],
                    targets[block, None],
                    foreseen[block, None] / temperature,
                    looked_at,
                )
            torch.mm(logits, weight, out=grad_hidden[rows])
            grad_weight.addmm_(logits.T, states)
        ctx.save_for_backward(hidden, weight, targets, foreseen, grad_hidden, grad_weight)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, foreseen, grad_hidden, grad_weight = ctx.saved_tensors
        scale = scale_between(foreseen, grad)
        if scale is None:
            with torch.enable_grad():
                leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
                again, _ = _FusedHead.apply(*leaves, targets, grad, ctx.temperature, ctx.chunk_size, 0)
            grad_hidden, grad_weight = torch.autograd.grad(again, leaves, grad)
        elif scale != 1.0:
            grad_hidden, grad_weight = grad_hidden * scale, grad_weight * scale
        return grad_hidden, grad_weight, None, None, None, None, None


def _to_gradient(logits: Tensor, places: Tensor, asked: Tensor, looked_at: slice) -> tuple[Tensor, Tensor]:
    """Make `asked` * d log π(y) / d logits of logits (n, V), in place; `places` and `asked` are (n, 1).

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
    foreseen: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
    entropy_every: int = 0,
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden weightᵀ / temperature) at the targets (N,), and entropies (N,); float32 or wider.

    Args:
        hidden: (N, H).
        weight: (V, H), the head.
        targets: (N,) int64.
        foreseen: (N,), d loss / d log π as the loss is expected to ask for it. Where it asks for something
            else the gradient is right all the same, at the cost of another forward pass.
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
            foreseen.to(wide),
            temperature,
            chunk_size,
            entropy_every,
        )
