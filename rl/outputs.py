"""What the policy says of a batch's tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenOutputs(NamedTuple):
    """Of the sampled tokens, (B, T) float32 each, 0 where loss_mask is 0; None for what was not asked for.

    `values` are a critic's, of the state before each token. `divergence` is the generalized JSD between
    policy and teacher. `log_z` is log Σ exp of the logits. `router_loss` is a scalar: how unevenly a
    mixture's experts are used, 1 where evenly.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None
    divergence: Tensor | None = None
    log_z: Tensor | None = None
    router_loss: Tensor | None = None
