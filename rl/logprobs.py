"""Log-probabilities and entropies of tokens, chunk by chunk: the (N, V) matrix of logits never exists."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
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


ENTROPY_TOKENS = 512
"""Of how many tokens a pass the entropy is told: it costs time, and as a metric it is an average."""


def entropy_stride(num_tokens: int, at_most: int) -> int:
    """The least k such that every k-th of `num_tokens` are `at_most` or fewer."""
    return max(1, -(-num_tokens // at_most))


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 4096,
    entropy_gradient: bool = False,
    head_dtype: torch.dtype = torch.float32,
    kept_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(hidden weightᵀ / temperature) at the targets, its entropy, and log Σ exp of its logits.

    The matrix product runs in `head_dtype`, also under autocast; everything after it in float32 (float64
    stays, everywhere). At most `chunk_size` rows of logits exist at a time, in the backward pass too,
    which computes them again. With `kept_ids` all three are of the distribution over these ids alone, and at
    most `chunk_size` rows of the head are gathered at a time.

    Args:
        hidden: (N, H).
        weight: (V, H), the head.
        targets: (N,) int64.
        temperature: divides the logits, above 0.
        chunk_size: rows of logits at a time.
        entropy_gradient: whether gradients flow through the entropy.
        kept_ids: (N, K) int, the ids that each token could be drawn from, -1 for none; None: all V. A target
            that is not among them has log-prob -inf.

    Returns:
        logprobs (N,), entropy (N,) and log Z (N,), nats.
    """
    num_rows = chunk_size if kept_ids is None else max(1, chunk_size // kept_ids.shape[1])
    states, tokens = hidden.split(num_rows), targets.split(num_rows)
    kept = [None] * len(states) if kept_ids is None else kept_ids.split(num_rows)
    chunks = [
        checkpoint(_chunk, *rows, weight, temperature, entropy_gradient, head_dtype, use_reentrant=False)
        for rows in zip(states, tokens, kept, strict=True)
    ]
    logprobs, entropies, log_z = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies), torch.cat(log_z)


def _chunk(
    hidden: Tensor,
    targets: Tensor,
    kept_ids: Tensor | None,
    weight: Tensor,
    temperature: float,
    entropy_gradient: bool,
    head_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if weight.dtype is torch.float64 else head_dtype
    with torch.autocast(hidden.device.type, enabled=False):
        if kept_ids is None:
            logits = hidden.to(dtype) @ weight.to(dtype).T
        else:
            head_rows = functional.embedding(kept_ids.clamp(min=0), weight).to(dtype)  # (n, K, H)
            logits = (head_rows @ hidden.to(dtype)[:, :, None])[:, :, 0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if kept_ids is None:
        chosen = logits.gather(1, targets[:, None])[:, 0]
    else:
        logits = logits.masked_fill(kept_ids < 0, -torch.inf)
        chosen = logits.masked_fill(kept_ids != targets[:, None], -torch.inf).amax(1)
    log_z = logits.logsumexp(1)
    logprobs = chosen - log_z
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
        entropy = entropy_of_logits(logits)
    return logprobs, entropy, log_z
