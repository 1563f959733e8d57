"""Which number has which precision, on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The dtypes of a learner, by their names in torch.

    `model`: what matrix products of the body run in, under autocast: float32, bfloat16 or float16. float16
    has its loss scaled, since its gradients vanish below 6e-8.
    `head`: what the head's matrix product runs in; everything after it, log-softmax, ratio, KL and loss, is
    float32 whatever is chosen here. A head in bfloat16 was measured 0.012 to 0.024 nats off.
    `engine`: the engines' dtype, in which weights are published.

    Fixed, because nothing else was found to be sound: weights and optimizer state are float32 (autocast keeps
    the master weights), log-probs are stored and sent as float32, statistics of groups are float64.
    """

    model: str = "float32"
    head: str = "float32"
    engine: str = "float32"

    @property
    def model_dtype(self) -> torch.dtype:
        return getattr(torch, self.model)

    @property
    def head_dtype(self) -> torch.dtype:
        return getattr(torch, self.head)

    @property
    def engine_dtype(self) -> torch.dtype:
        return getattr(torch, self.engine)

    @property
    def scales_loss(self) -> bool:
        """Whether gradients need a loss scale to be representable."""
        return self.model == "float16"
