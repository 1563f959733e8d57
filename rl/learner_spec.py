"""What a learner is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rl.lora_settings import LoraSpec
from rl.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """Everything a learner is made from. `algorithm` is an Objective of the kind that its class minimises.

    `precision` says which number has which dtype (rl/precision.py). `num_updates` is the length of the
    learning-rate schedule in optimizer updates. `teacher` is a folder or hub id, for rows that learn from
    one. `replay_routing` sends every token to the experts of the batch (rl/router_replay.py). `plugin`
    names a user's own algorithm, `file.py:ROW`: its file registers, in the learner's process too, what
    the row is made of. In the folder `incidents` the batches of updates that were not applied are kept;
    "" keeps none. With `exact` only kernels that repeat themselves to the bit are used. `backend` and
    `zero_stage` say how the weights lie on the `num_ranks` ranks, of which this is `rank` (rl/backends).
    `optimizer_offload` "cpu" keeps AdamW's moments in main memory (rl/optimizer_offload.py).
    `layout` says how a batch is computed (rl/layout.py, pad), in passes of `micro_batch_size` samples, or of
    `micro_batch_tokens` tokens where that is not 0; with `activation_checkpointing` the policy's layers are
    computed again in the backward pass.
    `lora` says which adapter is trained in place of the model's own weights.
    """

    model: str
    algorithm: Any
    learning_rate: float
    num_updates: int
    critic_lr: float = 0.0
    lr_schedule: str = "constant"
    warmup_updates: int = 0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    micro_batch_size: int = 32
    micro_batch_tokens: int = 0
    layout: str = "trie"
    activation_checkpointing: bool = False
    device: str = "cpu"
    precision: Precision = field(default_factory=Precision)
    num_threads: int = 1
    num_gpus: float = 0
    seed: int = 0
    run_name: str = "run"
    teacher: str = ""
    replay_routing: bool = False
    plugin: str = ""
    incidents: str = ""
    exact: bool = False
    backend: str = "plain"
    zero_stage: int = 0
    optimizer_offload: str = "none"
    rank: int = 0
    num_ranks: int = 1
    lora: LoraSpec | None = None
