"""One process, one device, torch alone: nothing is sharded and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rl.backends.base import Forward, Moments, Steps
from rl.backends.trained import TrainedModel
from rl.model import PolicyModel
from rl.optimizer import Optimizer
from rl.optimizer_offload import placed


class PlainBackend:
    """The only rank."""

    is_main = True

    def largest(self, number: int) -> int:
        return number

    def shard(self, trained: TrainedModel) -> None:
        """Everything stays where it is."""

    def start(self, trained: TrainedModel, optimizer: Optimizer) -> tuple[Forward, Steps]:
        return trained, optimizer

    def freeze(self, policy: PolicyModel) -> Forward:
        return policy

    def moments(self, steps: Steps, parameter: nn.Parameter) -> Moments:
        return steps.adamw.state.get(parameter, {})

    def set_moments(self, steps: Steps, moments: Mapping[nn.Parameter, Moments]) -> None:
        steps.adamw.state.clear()
        for parameter, state in moments.items():
            steps.adamw.state[parameter] = {
                name: value if name == "step" else placed(steps.adamw, parameter, value)
                for name, value in state.items()
            }

    def whole_model(self, model: Any) -> Any:
        return model
