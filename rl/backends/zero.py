"""DeepSpeed ZeRO 1 to 3: optimizer state, gradients and, at stage 3, weights lie in parts on the ranks.

The only file that imports DeepSpeed, and only a learner with `backend = "deepspeed"` imports it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.optim import AdamW

from rl.backends.base import Forward, Moments, Steps
from rl.backends.group import COLLECTIVES
from rl.backends.sharded import ShardedBackend
from rl.backends.tensors import local, partition
from rl.backends.trained import TrainedModel
from rl.learner_spec import LearnerSpec
from rl.model import PolicyModel
from rl.numerics import MetricSums
from rl.optimizer import Optimizer, scalar_share

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroBackend(ShardedBackend):
    """A DeepSpeed engine around the trained model; torch's AdamW inside it."""

    def __init__(self, spec: LearnerSpec) -> None:
        super().__init__(spec)
        # Its communication op is compiled by ninja, which stands beside this environment's python.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        os.environ |= {"LOCAL_RANK": "0", "RANK": str(spec.rank), "WORLD_SIZE": str(spec.num_ranks)}
        deepspeed.init_distributed(
            dist_backend=COLLECTIVES[spec.device], auto_mpi_discovery=False, verbose=False
        )

    def shard(self, trained: TrainedModel) -> None:
        """DeepSpeed shards when it starts."""

    def start(self, trained: TrainedModel, optimizer: Optimizer) -> tuple[Forward, Steps]:
        engine, *_ = deepspeed.initialize(
            model=trained,
            optimizer=optimizer.adamw,
            config=training_config(self.spec),
            dist_init_required=False,
        )
        return engine, ZeroSteps(engine, optimizer, num_ranks=self.spec.num_ranks)

    def freeze(self, policy: PolicyModel) -> Forward:
        policy.requires_grad_(False)
        if self.spec.zero_stage < 3:
            return policy
        config = zero_config(self.spec)
        engine, *_ = deepspeed.initialize(model=policy, config=config, dist_init_required=False)
        return engine

    def moments(self, steps: Steps, parameter: nn.Parameter) -> Moments:
        if not parameter.requires_grad:
            return {}
        state = _flat_states(_zero(steps))[_group_of(_zero(steps), parameter)]
        if "exp_avg" not in state:
            return {}
        whole = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
        return {"step": state["step"], **{name: value for name, value in whole.items() if value is not None}}

    def set_moments(self, steps: Steps, moments: Mapping[nn.Parameter, Moments]) -> None:
        zero = _zero(steps)
        states = _flat_states(zero)
        for parameter, state in moments.items():
            flat_state = states[_group_of(zero, parameter)]
            if "exp_avg" not in flat_state:
                flat = _flat_partitions(zero)[_group_of(zero, parameter)]
                flat_state |= {"step": state["step"].clone()} | {
                    name: torch.zeros_like(flat.detach()) for name in MOMENTS
                }
            flat_state["step"].copy_(state["step"])
        if self.spec.zero_stage < 3:
            zero._lazy_init_hp_params_optimizer_state()
        for parameter, state in moments.items():
            for name in MOMENTS:
                if self.spec.zero_stage == 3:
                    safe_set_local_optimizer_state(parameter, partition(state[name], local(parameter)), name)
                else:
                    safe_set_full_optimizer_state(parameter, state[name].to(parameter.device), name)


def zero_config(spec: LearnerSpec) -> dict[str, Any]:
    """DeepSpeed's configuration of any model, trained or not."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # as many backward passes a step as we like
        "gradient_clipping": spec.max_grad_norm,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": spec.zero_stage,
            "overlap_comm": spec.device == "cuda",
            "stage3_param_persistence_threshold": 0,  # every parameter is sharded, the small ones too
        },
    }


def training_config(spec: LearnerSpec) -> dict[str, Any]:
    """The same of the model that is trained: where its optimizer's state lies.

    An offloaded step stays torch's AdamW, on the CPU: DeepSpeed's own would have to be compiled.
    """
    config = zero_config(spec)
    if spec.optimizer_offload == "none":
        return config
    offload = {"device": spec.optimizer_offload, "pin_memory": spec.device == "cuda"}
    zero = config["zero_optimization"] | {"offload_optimizer": offload}
    return config | {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}


class ZeroSteps:
    """Updates by a DeepSpeed engine; schedule and metrics are those of `optimizer`, whose AdamW it steps."""

    def __init__(self, engine: Any, optimizer: Optimizer, *, num_ranks: int) -> None:
        self.engine = engine
        self.num_updates = 0
        self.was_skipped = False
        self.adamw, self.schedule, self.scaler = optimizer.adamw, optimizer.schedule, optimizer.scaler
        self._optimizer = optimizer
        self._num_ranks = num_ranks
        self._num_backwards = 0

    def zero_grad(self) -> None:
        self.engine.zero_grad()
        self._num_backwards = 0

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient. DeepSpeed averages over ranks, and ours is a sum."""
        self.engine.backward(loss * self._num_ranks)
        self._num_backwards += 1

    def apply(self) -> MetricSums:
        """As Optimizer.apply: a gradient that is not finite moves nothing."""
        self.num_updates += 1
        rate = float(self.schedule.get_last_lr()[0])
        self.was_skipped = False
        if not self._num_backwards:
            with _gradients_aside(self.adamw):
                return self._optimizer.advance(rate)
        self.engine.step()
        self.was_skipped = not self.engine.was_step_applied()
        if not self.was_skipped:
            self.schedule.step()
        norm = math.inf if self.was_skipped else float(self.engine.get_global_grad_norm())
        return {
            "optim/lr": scalar_share(rate),
            "optim/skipped_updates": scalar_share(1.0 if self.was_skipped else 0.0),
            "optim/grad_norm": scalar_share(norm),
        }


@contextmanager
def _gradients_aside(adamw: AdamW) -> Iterator[None]:
    """No parameter of `adamw` has a gradient within it.

    Offloaded, ZeRO 1 and 2 keep buffers of zeros as gradients, by which AdamW would move what it has.
    """
    parameters = [p for group in adamw.param_groups for p in group["params"]]
    kept = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    yield
    for parameter, grad in zip(parameters, kept, strict=True):
        parameter.grad = grad


def gathered(parameter: Tensor) -> Tensor:
    """A copy of the whole of a ZeRO-3 parameter."""
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def take_over(parameter: Any) -> None:
    """Copy a parameter into the float32 values that DeepSpeed steps from."""
    if hasattr(parameter, "ds_id"):
        safe_set_local_fp32_param(parameter, parameter.ds_tensor)
    else:
        safe_set_full_fp32_param(parameter, parameter.detach())


def _zero(steps: Steps) -> Any:
    assert isinstance(steps, ZeroSteps)
    return steps.engine.optimizer


def _groups(zero: Any) -> Iterable[Any]:
    """DeepSpeed's own groups of parameters, each of which it steps as one flat tensor."""
    return zero.fp16_groups if hasattr(zero, "fp16_groups") else zero.bit16_groups


def _group_of(zero: Any, parameter: nn.Parameter) -> int:
    return next(i for i, group in enumerate(_groups(zero)) if any(p is parameter for p in group))


def _flat_partitions(zero: Any) -> list[Tensor]:
    """This rank's part of each group, float32."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return zero.fp32_partitioned_groups_flat
    return zero.single_partition_of_fp32_groups


def _flat_states(zero: Any) -> list[dict[str, Tensor]]:
    """AdamW's state of each group's part."""
    return [zero.optimizer.state[flat] for flat in _flat_partitions(zero)]
