"""Whole distributions over the vocabulary: sampled from, compared, kept small.

Everything is computed in float32 or wider, whatever the logits' dtype. A function with a `chunk_size`
keeps no (N, V) intermediate for the backward pass but computes it again, that many rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, isfinite, log, log1p

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rl.numerics import LOG_RATIO_NET, loss_dtype

LOG_HALF = -log(2)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact to rounding in value and gradient; -inf at 0.

    Two forms, split at -ln 2, for neither is exact on both sides (Mächler 2012, "Accurately computing
    log(1 - exp(-|a|))"). The one for x far from 0 never sees the others: its gradient there is 0 · inf.
    """
    near = x > LOG_HALF
    far_form = torch.log1p(-torch.where(near, LOG_HALF, x).exp())
    return torch.where(near, torch.log(-torch.expm1(x)), far_form)


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p; held at the net where p is 1 to within e^-20: its slope is 1 / (1 - p)."""
    bounded = logp.clamp(max=-exp(-LOG_RATIO_NET))
    return bounded - log1mexp(bounded)


def top_tokens(logits: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The tokens that top-k and then top-p sampling leave: bool (..., V) for logits (..., V).

    Tokens stand in the order of their logits, equal ones in the order of their index. top-k keeps the first
    `top_k` (0: all). top-p keeps the shortest prefix of what is left, renormalised, whose probability reaches
    `top_p`; never fewer than one token.

    Raises:
        ValueError: top_k below 0, or top_p outside (0, 1].

    Example:
        probabilities 0.2, 0.5, 0.3 and top_p = 0.6  ->  [False, True, True]
    """
    if top_k < 0:
        raise ValueError(f"top_k = {top_k}: expected at least 1, or 0 for all tokens")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: expected more than 0 and at most 1")
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = (rank < top_k if top_k else rank >= 0).expand(logits.shape)
    if top_p < 1:  # the float64 sum reaches 1 before the last tokens
        mass = torch.where(kept, ordered.double(), -torch.inf).softmax(-1).cumsum(-1)
        kept = kept & (F.pad(mass[..., :-1], (1, 0)) < top_p)
    return torch.zeros_like(kept).scatter(-1, index, kept)


def sampling_logprobs(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Log-probs (..., V) of the distribution that a token is drawn from, -inf for tokens that it leaves out.

    vLLM's `processed_logprobs`: the logits are divided by the temperature, filtered (`top_tokens`) and then
    normalised. With the defaults its `raw_logprobs`. Dividing a log-prob by the temperature is neither.

    Raises:
        ValueError: a temperature that is not above 0, or what `top_tokens` refuses.
    """
    scaled = _scaled(logits, temperature)
    kept = top_tokens(scaled, top_k=top_k, top_p=top_p)
    return torch.where(kept, scaled, -torch.inf).log_softmax(-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q) in nats, (...), of log-probs p and q (..., V).

    A token that p leaves out (-inf) adds 0; one that only q leaves out makes it infinite.
    """
    return (p.exp() * torch.where(p.isneginf(), 0.0, p - q)).sum(-1)


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student), (...), of log-probs (..., V): the student covers all that the teacher does."""
    return kl_divergence(teacher, student)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student ‖ teacher), (...), of log-probs (..., V): the student stays within what the teacher does."""
    return kl_divergence(student, teacher)


def generalized_jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> Tensor:
    """β KL(T ‖ M) + (1 - β) KL(S ‖ M) of each token with M = β T + (1 - β) S (GKD, arXiv 2306.13649).

    β = 0 is the forward KL(T ‖ S) and β = 1 the reverse KL(S ‖ T), by definition and not as limits: the
    formula goes to 0 at both ends, so β = 0.01 is close to no loss at all. β = 0.5 is symmetric.

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V), a constant.
        beta: in [0, 1].
        temperature: divides both, above 0; the divergence is not multiplied by its square.
        chunk_size: rows at a time.

    Returns:
        (N,) nats.

    Raises:
        ValueError: shapes that differ, or a beta or temperature out of range.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(teacher_logits.shape)}, expected that of student_logits, "
            f"{tuple(student_logits.shape)}"
        )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta = {beta}: expected 0 (forward KL) to 1 (reverse KL)")

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return _jsd(_scaled(student, temperature), _scaled(teacher, temperature), beta)

    return _in_chunks(divergence, student_logits, teacher_logits.detach(), chunk_size=chunk_size)


def generalized_jsd_of_states(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    beta: float,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> Tensor:
    """`generalized_jsd` of hidden states (N, H) and heads (V, H), `chunk_size` rows of logits at a time.

    H may differ between the two; gradients flow to the student alone. Returns (N,) nats.
    """
    (states, head), (teacher_states, teacher_head) = student, tuple(x.detach() for x in teacher)

    def divergence(own: Tensor, given: Tensor, weight: Tensor) -> Tensor:
        logits, wanted = own @ weight.T, given @ teacher_head.T
        return _jsd(_scaled(logits, temperature), _scaled(wanted, temperature), beta)

    chunks = zip(states.split(chunk_size), teacher_states.split(chunk_size), strict=True)
    return torch.cat([checkpoint(divergence, *rows, head, use_reentrant=False) for rows in chunks])


def _jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    """The divergence (N,) of logits (N, V), with its ends by definition."""
    s, t = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    if beta == 0:
        return forward_kl(s, t)
    if beta == 1:
        return reverse_kl(s, t)
    mixture = _log_mixture(t, s, beta)
    return beta * kl_divergence(t, mixture) + (1 - beta) * kl_divergence(s, mixture)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    loss_mask: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    num_tokens: int | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """The mean `generalized_jsd` over tokens with mask 1: a float64 scalar, 0 with a graph if there is none.

    Args:
        student_logits: (..., V).
        teacher_logits: (..., V), a constant.
        loss_mask: (...) bool; what stands at mask 0 does not matter.
        beta: see `generalized_jsd`.
        temperature: see `generalized_jsd`.
        num_tokens: of the whole optimizer step, so that micro-batches add up; None: of this call.
        chunk_size: rows at a time.
    """
    per_token = generalized_jsd(
        _trained(student_logits, loss_mask, "student_logits"),
        _trained(teacher_logits, loss_mask, "teacher_logits"),
        beta=beta,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return per_token.double().sum() / _denominator(per_token, num_tokens)


def z_loss(
    logits: Tensor,
    loss_mask: Tensor,
    *,
    coef: float,
    num_tokens: int | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """coef · mean of (log Σ exp logits)² over tokens with mask 1 (PaLM, arXiv 2204.02311).

    Its gradient 2 coef lse softmax(logits) / num_tokens keeps logits from drifting to where bfloat16 is
    coarse. Arguments and result as in `distillation_loss`; logits (..., V).
    """
    rows = _trained(logits, loss_mask, "logits")
    log_z = _in_chunks(lambda chunk: _scaled(chunk, 1.0).logsumexp(-1), rows, chunk_size=chunk_size)
    return coef * log_z.double().square().sum() / _denominator(log_z, num_tokens)


def _log_mixture(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """log(β exp p + (1 - β) exp q); -inf, without a gradient, where both are."""
    nowhere = p.isneginf() & q.isneginf()
    p, q = (torch.where(nowhere, 0.0, x) for x in (p, q))
    return torch.where(nowhere, -torch.inf, torch.logaddexp(p + log(beta), q + log1p(-beta)))


def _in_chunks(function: Callable[..., Tensor], *inputs: Tensor, chunk_size: int) -> Tensor:
    """function(*inputs) (N,) of inputs (N, V); only `inputs` themselves are kept for the backward pass."""
    rows = zip(*(x.split(chunk_size) for x in inputs), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in rows])


def _trained(logits: Tensor, loss_mask: Tensor, name: str) -> Tensor:
    """The rows (N, V) of logits (..., V) at mask 1; the others get the gradient 0, whatever they hold."""
    if logits.shape[:-1] != loss_mask.shape:
        raise ValueError(
            f"{name} has shape {tuple(logits.shape)}, expected {(*loss_mask.shape, 'V')}: that of loss_mask "
            "and the vocabulary"
        )
    return logits[loss_mask.bool()]


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if not (isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature = {temperature}: expected more than 0; greedy has no log-probs")
    return logits.to(loss_dtype(logits)) / temperature


def _denominator(per_token: Tensor, num_tokens: int | None) -> int:
    return max(len(per_token) if num_tokens is None else num_tokens, 1)
