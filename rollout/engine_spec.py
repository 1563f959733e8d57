"""What an engine is started from: its spec, and what vLLM is told by environment variables and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What vLLM reads from the environment, set before it is imported: always, by device, by weight channel.
COMMON_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
DEVICE_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        # Without dynamo no C++ compiler is called (vLLM compiles gather_logprobs even with enforce_eager).
        "TORCHDYNAMO_DISABLE": "1",
        # Engines share the cores that the run gives them.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # No worker process besides the engine core's: it would spin on a core for a second after each
        # answer, while the learner works. vLLM starts one only to set OpenMP's environment, which is set.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    },
    "cuda": {},
}
CHANNEL_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    # A CUDA IPC handle holds types of torch's, which vLLM passes on to its worker only as pickles. They come
    # from this run's learner, over a socket of this user's on this host.
    "ipc": {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
}
GPU_FILL = 0.9  # of an engine's share of a GPU: what vLLM may fill, the rest is its CUDA context

ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for (vllm 0.32, config/lora.py: MaxLoRARanks)."""

VERSIONS_PER_ADAPTER = 2
"""That an engine has room for at a time: the current one, and the one that requests in flight began with."""

POLICY = "policy"
"""The adapter that answers where none is named; until it is first loaded, the model alone does."""

BASE = ""
"""In the place of an adapter's name: the model alone, which is the reference of an adapter's KL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything one engine is started from.

    `num_threads` is the engine's OpenMP threads on the CPU: with one, its results do not depend on what else
    is in the batch; on a GPU `batch_invariant` asks for kernels of which that is true. `kv_cache_gib` is per
    engine on the CPU; on a GPU `num_gpus` rules instead, the engine's share of one (at most 1).
    `weight_transfer_backend` is a name in vLLM's weight-transfer registry. With `returns_experts` completions
    tell a mixture's routing. With `adapter_rank` above 0 it serves LoRA adapters of up to that
    rank, beside the modules whose names end in one of `adapter_targets`: `num_adapters` of them at once, each
    under a name of its own.

    Raises:
        ValueError: no room for an adapter is asked for, more without an adapter_rank, or a rank that vLLM has
            no room for.
    """

    name: str
    model: str
    device: str
    dtype: str
    context_length: int
    max_num_seqs: int
    weight_transfer_backend: str
    num_threads: int = 1
    kv_cache_gib: int = 1
    num_gpus: float = 0.0
    seed: int = 0
    returns_experts: bool = False
    batch_invariant: bool = False
    adapter_rank: int = 0
    adapter_targets: tuple[str, ...] = ()
    num_adapters: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_adapters < 1:
            raise ValueError(f"num_adapters = {self.num_adapters}: expected 1 or more")
        if self.num_adapters > 1 and not self.adapter_rank:
            raise ValueError(
                f"num_adapters = {self.num_adapters} has no effect with adapter_rank = 0, an engine without "
                "adapters: give the largest rank of theirs, or leave num_adapters out"
            )
        if not 0 <= self.adapter_rank <= ADAPTER_RANKS[-1]:
            raise ValueError(
                f"adapter_rank = {self.adapter_rank}: expected 0 (no adapters) to {ADAPTER_RANKS[-1]}, the "
                "largest that vLLM has room for; merge the adapter into its model (scripts.export)"
            )


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """The environment variables of an engine; those of the spec itself come last."""
    on_cpu = {"OMP_NUM_THREADS": str(spec.num_threads), "VLLM_CPU_KVCACHE_SPACE": str(spec.kv_cache_gib)}
    return {
        **COMMON_ENVIRONMENT,
        **DEVICE_ENVIRONMENT[spec.device],
        **(on_cpu if spec.device == "cpu" else {}),
        **({"VLLM_BATCH_INVARIANT": "1"} if spec.batch_invariant else {}),
        **CHANNEL_ENVIRONMENT.get(spec.weight_transfer_backend, {}),
        **spec.environment,
    }


def device_arguments(spec: EngineSpec) -> dict[str, Any]:
    """The arguments of AsyncEngineArgs that the device decides; on a GPU vLLM's own defaults do well."""
    if spec.device != "cpu":
        return {"gpu_memory_utilization": GPU_FILL * spec.num_gpus}
    return {
        "enforce_eager": True,
        # Seeded requests and chunked prefill kill the CPU engine ("CPU Generator does not use offset").
        "enable_chunked_prefill": False,
        "block_size": 32,  # the CPU's default is 128: shorter prompts would never be cached
    }


def adapter_arguments(spec: EngineSpec) -> dict[str, Any]:
    """The arguments of AsyncEngineArgs for an engine that serves adapters; none for any other.

    On the CPU vLLM gathers A and B anew for every token (vllm 0.32, lora/ops/torch_ops), so sampling slows
    down in proportion to the room for a rank: no more of it than needed.
    """
    if not spec.adapter_rank:
        return {}
    num_loaded = VERSIONS_PER_ADAPTER * spec.num_adapters
    return {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in ADAPTER_RANKS if rank >= spec.adapter_rank),
        "max_loras": num_loaded,
        "max_cpu_loras": num_loaded,
        # Never the head: with an adapter's layer around it, scoring a prompt kills the engine on the CPU.
        "lora_target_modules": list(spec.adapter_targets),
    }
