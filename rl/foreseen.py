"""What a loss will ask of the policy's log-probs, told before they are computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl.batch import LossCounts
from rl.fused_head import TOLERANCE
from rl.layout import PaddedLayout
from rl.outputs import TokenOutputs


def foreseen_gradient(objective: Any, layout: PaddedLayout, counts: LossCounts) -> Tensor | None:
    """d loss / d log π of the N sampled tokens, row by row, where log π is old_logprobs: float32 (N,).

    That is what the first update of weights that scored or sampled asks for (rl/fused_head.py). None where
    the loss looks at more than log-probs, or there are none to look at.
    """
    looks_further = (
        objective.critic != "none"
        or objective.entropy_gradient
        or objective.needs_log_z
        or objective.uses_router_loss
        or objective.compares_distributions
    )
    if looks_further or layout.old_logprobs is None or layout.kept_ids is not None:
        return None
    with torch.enable_grad():
        logprobs = layout.old_logprobs.clone().requires_grad_()
        unknown = torch.full_like(logprobs, torch.nan)
        loss, _ = objective.loss(TokenOutputs(logprobs, unknown.detach()), layout, counts)
        if not loss.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(loss, logprobs)
    return gradient[layout.loss_mask]


def was_told(logprobs: Tensor, layout: PaddedLayout) -> bool:
    """Whether the engine had said `logprobs` (B, T) of the sampled tokens already, but for rounding."""
    gaps = (logprobs - layout.rollout_logprobs)[layout.loss_mask]
    return bool((gaps.abs() <= TOLERANCE).all())
