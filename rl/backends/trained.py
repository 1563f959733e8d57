"""All that is trained as one module, so that sharded weights are gathered wherever they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rl.layout import PaddedLayout
from rl.model import PolicyModel, ValueModel
from rl.outputs import TokenOutputs


class TrainedModel(nn.Module):
    """The policy, and a critic with a body of its own where there is one. Every computation is a forward."""

    def __init__(self, policy: PolicyModel, critic: ValueModel | None, dtype: torch.dtype) -> None:
        """`dtype`: what matrix products run in, under autocast; float32 turns it off."""
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.dtype = dtype

    def forward(
        self,
        layout: PaddedLayout | None = None,
        teacher: PolicyModel | None = None,
        token_ids: Tensor | None = None,
        wants_values: bool = True,
        **options: Any,
    ) -> TokenOutputs | Tensor:
        """The outputs of a layout; or, of `token_ids` (1, T), the log-probs (T - 1,) of all but the first.

        The latter are at temperature 1, float32. `options` are those of PolicyModel's forward. Without
        `wants_values` a critic with a body of its own is not asked.
        """
        device = next(self.parameters()).device.type if layout is None else layout.token_ids.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype is not torch.float32):
            if token_ids is not None:
                return self._sequence(token_ids)
            outputs: TokenOutputs = self.policy(layout, teacher, **options)
            if self.critic is None or not wants_values:
                return outputs
            return outputs._replace(values=self.critic(layout))

    def _sequence(self, token_ids: Tensor) -> Tensor:
        logits = self.policy.model(input_ids=token_ids, use_cache=False).logits[0, :-1].float()
        return torch.log_softmax(logits, dim=-1).gather(1, token_ids[0, 1:, None])[:, 0]


def nothing_of(outputs: TokenOutputs) -> Tensor:
    """0, with a gradient of 0 to every trained weight."""
    number = outputs.logprobs.sum() + (0.0 if outputs.values is None else outputs.values.sum())
    return number * 0.0
