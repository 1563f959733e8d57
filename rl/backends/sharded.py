"""What FSDP2 and DeepSpeed have in common."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.backends.group import largest
from rl.backends.tensors import whole
from rl.learner_spec import LearnerSpec


class ShardedBackend:
    """One rank of several, in a process group that is open already (rl/backends/group.py)."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.is_main = spec.rank == 0
        if not dist.is_initialized():
            raise RuntimeError(
                f"backend = {spec.backend!r} needs a process group, and none is open; rl/ranks.py opens it"
            )

    def largest(self, number: int) -> int:
        return largest(number, torch.device(self.spec.device))

    def whole_model(self, model: Any) -> Any:
        """Gathered tensor by tensor into the main rank's main memory."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            gathered = whole(tensor)
            if self.is_main:
                tensors[name] = gathered.cpu()
        return unsharded(model, tensors) if self.is_main else None


def unsharded(model: Any, tensors: dict[str, Tensor]) -> Any:
    """A model as transformers makes it from `model`'s configuration, made of these tensors."""
    with torch.device("meta"):
        plain: Any = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if name in plain.state_dict()},
        strict=False,
        assign=True,
    )
    plain.tie_weights()
    left = [name for name, parameter in plain.named_parameters() if parameter.is_meta]
    if left:
        raise RuntimeError(f"{', '.join(left)} of {type(plain).__name__} could not be gathered")
    plain.generation_config = model.generation_config
    return plain
