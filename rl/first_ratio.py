"""Whether the first update starts where scoring left off."""

from __future__ import annotations

import torch

from rl.layout import PaddedLayout
from rl.numerics import MetricSums, max_share, select


def first_ratio_error(logprobs: torch.Tensor, layout: PaddedLayout) -> MetricSums:
    """|ratio - 1| of the policy to itself: scoring and updating must compute the same log-probs."""
    if layout.old_logprobs is None:
        return {}
    difference = select(layout.loss_mask, logprobs.detach()) - select(layout.loss_mask, layout.old_logprobs)
    return {"policy/first_ratio_error": max_share(torch.expm1(difference).abs(), layout.loss_mask)}
