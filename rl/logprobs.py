"""Log-probabilities and entropies of tokens, chunk by chunk: the (N, V) matrix of logits never exists."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def next_token_targets(hidden: Tensor, token_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """What predicts each sampled token, and the token: the only place where anything is shifted by one.

    Args:
        hidden: (B, T, H); position t has seen tokens 0..t.
        token_ids: (B, T) int64.
        loss_mask: (B, T) bool, false in column 0.

    Returns:
        (N, H) hidden states at t - 1 and (N,) token ids at t, for the N positions t with loss_mask 1 in row
        order.

    Example:
        token_ids = [[5, 6, 7, 8]], loss_mask = [[0, 0, 1, 1]]  ->  hidden[0, [1, 2]], [7, 8]
    """
    sampled = loss_mask[:, 1:]
    return hidden[:, :-1][sampled], token_ids[:, 1:][sampled]


def scatter_tokens(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Values (N,) of the sampled tokens, row by row, at their own positions (B, T); 0 elsewhere."""
    return torch.zeros(loss_mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
        loss_mask, values
    )


def entropy_of_logits(logits: Tensor) -> Tensor:
    """Entropy (...) in nats of softmax(logits), logits (..., V): Σ p (lse - x).

    A logit of -inf (grammar or top-p masks) counts as probability 0; the usual lse - Σ p x is NaN there.
    """
    lse = logits.logsumexp(-1, keepdim=True)
    surprise = torch.where(logits.isneginf(), 0.0, lse - logits)
    return ((logits - lse).exp() * surprise).sum(-1)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 4096,
    entropy_gradient: bool = False,
    head_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(hidden weightᵀ / temperature) at the targets, its entropy, and log Σ exp of its logits.

    The matrix product runs in `head_dtype`, also under autocast; everything after it in float32 (float64
    stays, everywhere). At most `chunk_size` rows of logits exist at a time, in the backward pass too,
    which computes them again.

    Args:
        hidden: (N, H).
        weight: (V, H), the head.
        targets: (N,) int64.
        temperature: divides the logits, above 0.
        chunk_size: rows of logits at a time.
        entropy_gradient: whether gradients flow through the entropy.

    Returns:
        logprobs (N,), entropy (N,) and log Z (N,), nats.
    """
    chunks = [
        checkpoint(_chunk, *rows, weight, temperature, entropy_gradient, head_dtype, use_reentrant=False)
        for rows in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    logprobs, entropies, log_z = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies), torch.cat(log_z)


def _chunk(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    temperature: float,
    entropy_gradient: bool,
    head_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if weight.dtype is torch.float64 else head_dtype
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden.to(dtype) @ weight.to(dtype).T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_z = logits.logsumexp(1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - log_z
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
        entropy = entropy_of_logits(logits)
    return logprobs, entropy, log_z
