"""Layouts made by hand, and a loss evaluated on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rl.batch import LossCounts
from rl.layout import PaddedLayout
from rl.numerics import MetricSums, add_metrics
from rl.outputs import TokenOutputs
from rl.policy_gradient import PolicyGradient


def layout_of(mask: Tensor, **tensors: Tensor) -> PaddedLayout:
    """A layout of rows with this loss mask; each row is a trajectory of its own."""
    return PaddedLayout(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64),
        attention_mask=torch.ones(mask.shape, dtype=torch.bool),
        position_ids=torch.arange(mask.shape[1]).expand(mask.shape),
        loss_mask=mask.bool(),
        weight=torch.ones(mask.shape[0]),
        **tensors,
    )


def random_layout(
    num_rows: int = 6,
    length: int = 9,
    *,
    seed: int = 0,
    spread: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, PaddedLayout]:
    """Log-probs of the policy and a layout with holes in its mask, one advantage a row.

    `spread` is how far the policy has moved from old_logprobs, in nats; 0 is on policy.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return (scale * torch.randn(num_rows, length, generator=generator, dtype=torch.float64)).to(dtype)

    old = -noise(1.0).abs()
    mask = torch.rand(num_rows, length, generator=generator) < 0.6
    layout = layout_of(
        mask,
        old_logprobs=old,
        rollout_logprobs=old + noise(0.1),
        ref_logprobs=old + noise(0.3),
        advantages=noise(1.0)[:, :1].expand(num_rows, length).contiguous(),
        teacher_logprobs=old + noise(0.3),
        old_values=noise(1.0),
        returns=noise(1.0),
    )
    return old + noise(spread), layout


def counts_of(layout: PaddedLayout) -> LossCounts:
    mask = layout.loss_mask
    return LossCounts(num_tokens=int(mask.sum()), num_sequences=int(mask.any(1).sum()))


def rows(layout: PaddedLayout, chosen: slice | Tensor) -> PaddedLayout:
    tensors = {name: getattr(layout, name) for name in PaddedLayout.__dataclass_fields__}
    return replace(layout, **{name: x[chosen] for name, x in tensors.items() if x is not None})


def evaluate(
    algorithm: PolicyGradient,
    logprobs: Tensor,
    layout: PaddedLayout,
    *,
    splits: Sequence[slice] = (slice(None),),
    entropy: Tensor | None = None,
) -> tuple[Tensor, Tensor, MetricSums]:
    """Loss, gradient to logprobs and metric sums, with the rows in micro-batches `splits`.

    A critic's values are those before the update, and a divergence is a made one: half the square of the
    log-prob; log Z is 3 less it.
    """
    leaf = logprobs.detach().clone().requires_grad_()
    entropy = torch.zeros_like(leaf) if entropy is None else entropy
    counts = counts_of(layout)
    losses, sums = [], []
    for chosen in splits:
        part_layout = rows(layout, chosen)
        known = torch.where(part_layout.loss_mask, leaf[chosen], 0.0)
        wide = known.to(torch.promote_types(known.dtype, torch.float32))
        outputs = TokenOutputs(
            leaf[chosen], entropy[chosen], part_layout.old_values, 0.5 * wide.square(), 3.0 - wide
        )
        loss, part = algorithm.loss(outputs, part_layout, counts)
        loss.backward()
        losses.append(loss.detach())
        sums.append(part)
    assert leaf.grad is not None
    return torch.stack(losses).sum(), leaf.grad, add_metrics(sums)
