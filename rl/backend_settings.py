"""Settings of the learner's processes: how many, and what spreads the model over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rl.overrides import Count, Range

OptimizerOffload = Literal["none", "cpu"]
BackendName = Literal["plain", "deepspeed", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """The part of a Config that says how the learner is spread over devices."""

    backend: BackendName = "plain"
    """What the learner computes with. plain: torch, one process, one device; fsdp: FSDP2 of torch; deepspeed:
    DeepSpeed ZeRO, whose first start compiles a C++ extension."""
    learner_ranks: Count = 1
    """Processes of the learner, each with a device of its own: GPUs, or shares of the CPU's cores."""
    zero_stage: Annotated[int, Range(0, 3)] = 0
    """What DeepSpeed spreads over the ranks. 1: optimizer state; 2: gradients too; 3: weights too. 0 is auto:
    3 with backend deepspeed."""
    optimizer_offload: OptimizerOffload = "none"
    """Where the optimizer's state of a learner on a GPU lies. cpu: in main memory, which frees 8 bytes a
    trained parameter on the GPU and makes updates slower; with backend deepspeed AdamW steps on the CPU."""
