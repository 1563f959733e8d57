"""AdamW and its learning-rate schedule, both torch's, and the gradient that is applied or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from rl.backends.tensors import whole
from rl.numerics import MetricSums, Share, mean_share
from rl.optimizer_offload import OffloadedAdamW

if TYPE_CHECKING:
    from rl.learner_spec import LearnerSpec


def learning_rate_factor(update: int, *, schedule: str, num_updates: int, warmup_updates: int) -> float:
    """The factor on the peak learning rate at optimizer update `update` (from 0).

    Linear warm-up from 1 / warmup_updates, then constant, or linear or half-cosine decay to 0 at
    `num_updates`.
    """
    if update < warmup_updates:
        return (update + 1) / warmup_updates
    progress = min(1.0, (update - warmup_updates) / max(1, num_updates - warmup_updates))
    return {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[schedule]


class Optimizer:
    """One AdamW over groups of parameters, each with its peak learning rate and a gradient norm of its own.

    The norms are clipped apart: a critic's errors, large at first, must not shrink the policy's step. A group
    without parameters is left out. With `offloads` AdamW's moments lie in main memory.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[nn.Parameter], float]],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
        schedule: str,
        num_updates: int,
        warmup_updates: int,
        scales_loss: bool = False,
        offloads: bool = False,
    ) -> None:
        self.num_updates = 0  # asked for, applied or not
        self.was_skipped = False
        self.max_grad_norm = max_grad_norm
        self.adamw = (OffloadedAdamW if offloads else AdamW)(
            [{"params": list(parameters), "lr": rate} for parameters, rate in groups if parameters],
            betas=betas,
            weight_decay=weight_decay,
        )
        self.schedule = LambdaLR(
            self.adamw,
            lambda update: learning_rate_factor(
                update, schedule=schedule, num_updates=num_updates, warmup_updates=warmup_updates
            ),
        )

        self.scaler = GradScaler("cpu", enabled=scales_loss)

    @classmethod
    def of(cls, spec: LearnerSpec, groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> Self:
        """The optimizer that a learner's spec asks for, over groups of parameters and their peak rates."""
        return cls(
            groups,
            betas=spec.adam_betas,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            schedule=spec.lr_schedule,
            num_updates=spec.num_updates,
            warmup_updates=spec.warmup_updates,
            scales_loss=spec.precision.scales_loss,
            offloads=spec.optimizer_offload == "cpu" and spec.backend != "deepspeed",  # which does it itself
        )

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient; scaled, where float16 could not hold it otherwise."""
        self.scaler.scale(loss).backward()

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def apply(self) -> MetricSums:
        """Clip, step and advance the schedule; with a gradient that is not finite only a loss scale moves.

        Without any gradient, when nothing was trained, only the schedule moves.
        """
        self.num_updates += 1
        rate = float(self.schedule.get_last_lr()[0])
        if all(p.grad is None for group in self.adamw.param_groups for p in group["params"]):
            return self.advance(rate)
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.adamw)
        norms = [clip_gradients(group["params"], self.max_grad_norm) for group in self.adamw.param_groups]
        is_finite = all(math.isfinite(norm) for norm in norms)
        self.was_skipped = not is_finite
        if is_finite:
            self.scaler.step(self.adamw)
            self.schedule.step()
        self.scaler.update()
        names = ("optim/grad_norm", "optim/critic_grad_norm")
        return {
            "optim/lr": scalar_share(rate),
            "optim/skipped_updates": scalar_share(0.0 if is_finite else 1.0),
            **({"optim/loss_scale": scalar_share(scale)} if self.scaler.is_enabled() else {}),
            **{name: scalar_share(norm) for name, norm in zip(names, norms, strict=False)},
        }

    def advance(self, rate: float) -> MetricSums:
        """An update that trains nothing. torch's GradScaler refuses to step without a gradient."""
        self.was_skipped = False
        self.adamw.step()  # moves nothing; the schedule warns when it steps first
        self.schedule.step()
        numbers = {"optim/lr": rate, "optim/skipped_updates": 0.0, "optim/grad_norm": 0.0}
        return {name: scalar_share(value) for name, value in numbers.items()}


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a global L2 norm of at most `max_norm`; returns what it was, over all ranks."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def scalar_share(value: float) -> Share:
    """A number of one update; over several updates the mean."""
    return mean_share(torch.tensor(value), torch.tensor(1.0))
