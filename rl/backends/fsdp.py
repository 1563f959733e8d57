"""FSDP2: every decoder layer and the rest sharded over the ranks by torch, gathered where they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rl.backends.base import Forward, Moments, Steps
from rl.backends.sharded import ShardedBackend
from rl.backends.tensors import like, whole
from rl.backends.trained import TrainedModel
from rl.learner_spec import LearnerSpec
from rl.model import PolicyModel
from rl.optimizer import Optimizer
from rl.optimizer_offload import OffloadedAdamW, placed


class FsdpBackend(ShardedBackend):
    """Parameters are DTensors, and so are their gradients and AdamW's moments, unless these are offloaded.

    That is ours (rl/optimizer_offload.py) and not FSDP2's CPUOffloadPolicy, which takes the weights out of
    the GPU too: a sync, a checkpoint and the gradient's norm would need a second communicator, the CPU's.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        super().__init__(spec)
        self._mesh = init_device_mesh(spec.device, (spec.num_ranks,))

    def shard(self, trained: TrainedModel) -> None:
        self._shard(trained)

    def start(self, trained: TrainedModel, optimizer: Optimizer) -> tuple[Forward, Steps]:
        return trained, optimizer

    def freeze(self, policy: PolicyModel) -> Forward:
        policy.requires_grad_(False)
        self._shard(policy)
        return policy

    def moments(self, steps: Steps, parameter: nn.Parameter) -> Moments:
        state = steps.adamw.state.get(parameter, {})
        if isinstance(steps.adamw, OffloadedAdamW):
            state = {name: x if name == "step" else _as_shard_of(parameter, x) for name, x in state.items()}
        return {name: whole(value) for name, value in state.items()}

    def set_moments(self, steps: Steps, moments: Mapping[nn.Parameter, Moments]) -> None:
        steps.adamw.state.clear()
        for parameter, state in moments.items():
            assert isinstance(parameter, DTensor)
            steps.adamw.state[parameter] = {
                name: value if name == "step" else placed(steps.adamw, parameter, like(parameter, value))
                for name, value in state.items()
            }

    def _shard(self, root: nn.Module) -> None:
        # Layers are gathered in the dtype that they compute in, under autocast; the head, which computes in
        # a dtype of its own, in float32. Gradients are always summed in float32.
        dtype = self.spec.precision.model_dtype
        cast = None if dtype is torch.float32 else dtype
        policy = MixedPrecisionPolicy(
            param_dtype=cast, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
        )
        for layer in decoder_layers(root):
            fully_shard(layer, mesh=self._mesh, mp_policy=policy)
        # The root is sharded again after its forward, which FSDP2 would not do: between two passes every
        # parameter of every rank is then its shard, for a sync or a checkpoint to gather.
        fully_shard(root, mesh=self._mesh, reshard_after_forward=True)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def _as_shard_of(parameter: nn.Parameter, held: Tensor) -> DTensor:
    """What this rank holds of a tensor that is sharded as `parameter` is, where collectives reach it."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        held.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def decoder_layers(root: nn.Module) -> list[Any]:
    """The layers that transformers says must not be split, of every model inside `root`."""
    names = {name for module in root.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in root.modules() if type(module).__name__ in names]
