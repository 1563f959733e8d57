"""Which process computes where: engine and learner specs, Ray, and the facts of the start screen."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private import worker as ray_worker

from recipes.leftovers import leftovers
from rl.backends.group import COLLECTIVES
from rl.config import Config
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.lora import served_shape
from rl.machine import Machine, stack_versions
from rl.objective import Objective
from rl.precision import Precision
from rl.ranks import ShardedLearner
from rl.reward_checks import reward_facts
from rl.run_dir import RunDir
from rl.sandbox_checks import sandbox_line
from rl.screens import Link, Role, StartFacts
from rl.weight_sync import ADAPTER_FILES, SHARED_MEMORY, LearnerSends, Transfer
from rl.workers import LearnerClient, RemoteLearner
from rollout.engine import EngineSpec
from rollout.failures import PeerFailedError
from rollout.limits import Limits
from rollout.retry import RetryPolicy
from rollout.workers import RemoteRollouts, RolloutSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What one --sync-backend stands for.

    `backend` is its name in vLLM's weight-transfer registry. With `own_gpus` the learner and every engine get
    a GPU each (NCCL refuses two ranks on one); without, they share one, which is what CUDA IPC needs.
    """

    backend: str
    transfer: Transfer
    own_gpus: bool = False


CHANNELS = {
    "shm": Channel(backend="whetstone_shm", transfer=SHARED_MEMORY),
    "ipc": Channel(backend="ipc", transfer=LearnerSends("ipc")),
    "nccl": Channel(backend="nccl", transfer=LearnerSends("nccl"), own_gpus=True),
}


def transfer_of(config: Config) -> Transfer:
    """How the weights of a resolved `config` get into its engines."""
    return ADAPTER_FILES if config.lora_sync == "adapter" else CHANNELS[config.sync_backend].transfer


def gpu_shares(config: Config) -> tuple[float, float]:
    """GPUs of the learner and of each engine: Ray fills one GPU before the next, so shares meet on one."""
    if config.device == "cpu":
        return 0.0, 0.0
    if config.backend != "plain":
        return 1.0, 1.0
    return (1.0, 1.0) if CHANNELS[config.sync_backend].own_gpus else (0.5, 0.5 / config.engines)


def make_engine_specs(config: Config) -> list[EngineSpec]:
    """One spec an engine."""
    adapter_rank, adapter_targets = served_shape(config) if config.lora_sync == "adapter" else (0, ())
    return [
        EngineSpec(
            name=f"engine {number}",
            model=config.model,
            device=config.device,
            dtype=config.engine_dtype,
            context_length=config.context_length,
            max_num_seqs=config.num_concurrent,
            weight_transfer_backend=CHANNELS[config.sync_backend].backend,
            num_threads=config.engine_threads,
            num_gpus=gpu_shares(config)[1],
            seed=config.seed,
            returns_experts=config.replay_routing,
            batch_invariant=config.determinism == "exact" and config.device == "cuda",
            adapter_rank=adapter_rank,
            adapter_targets=adapter_targets,
        )
        for number in range(config.engines)
    ]


def make_rollouts(config: Config, engines: Sequence[EngineSpec] | None = None) -> list[RemoteRollouts]:
    """An engine with its agents in a Ray actor, for each of `config.engines`; not started yet.

    `engines` are given where they are others than those of make_engine_specs.
    """
    return [
        RemoteRollouts(
            RolloutSpec(
                engine=spec,
                env=config.env,
                reward=config.reward,
                limits=Limits(
                    max_turns=config.max_turns,
                    max_turn_tokens=config.max_turn_tokens,
                    max_total_tokens=config.max_total_tokens,
                    max_tool_calls=config.max_tool_calls,
                    max_wall_s=config.max_wall_s,
                ),
                run_seed=config.seed,
                sandbox=config.sandbox_policy,
                reward_workers=max(1, config.reward_workers // config.engines),
                reward_timeout_s=config.reward_timeout_s,
                retry=RetryPolicy(max_attempts=config.max_attempts),
                reward_python=config.reward_python,
                num_steps=config.num_steps,
            ),
            start_s=config.engine_start_s,
            group_s=config.group_deadline_s,
            sync_s=config.sync_deadline_s,
        )
        for spec in engines or make_engine_specs(config)
    ]


def make_learner_spec(config: Config, algorithm: Objective, *, run_name: str, incidents: str) -> LearnerSpec:
    """The learner of `config`."""
    return LearnerSpec(
        model=config.model,
        algorithm=algorithm,
        learning_rate=config.learning_rate if config.lora_lr is None else config.lora_lr,
        critic_lr=config.learning_rate if config.critic_lr is None else config.critic_lr,
        num_updates=config.num_optimizer_steps,
        lr_schedule=config.lr_schedule,
        warmup_updates=config.warmup_steps * config.num_minibatches,
        weight_decay=config.weight_decay,
        adam_betas=(config.adam_beta1, config.adam_beta2),
        max_grad_norm=config.max_grad_norm,
        temperature=config.temperature,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        layout=config.layout,
        activation_checkpointing=config.activation_checkpointing,
        optimizer_offload=config.optimizer_offload,
        device=config.device,
        precision=Precision(model=config.learner_dtype, head=config.head_dtype, engine=config.engine_dtype),
        num_threads=config.learner_threads,
        num_gpus=gpu_shares(config)[0],
        seed=config.seed,
        run_name=run_name,
        teacher=config.teacher,
        replay_routing=config.replay_routing,
        incidents=incidents,
        exact=config.determinism == "exact",
        plugin=config.algorithm if ":" in config.algorithm else "",
        lora=config.lora,
    )


def make_learner(config: Config, spec: LearnerSpec, kind: type[Learner]) -> LearnerClient:
    """A learner of the class `kind` in the processes that `config` says; not started yet."""
    spec = replace(spec, backend=config.backend, zero_stage=config.zero_stage, num_ranks=config.learner_ranks)
    client = RemoteLearner if config.backend == "plain" else ShardedLearner
    return client(spec, deadline_s=config.learner_deadline_s, sync_s=config.sync_deadline_s, kind=kind)


def start_ray(config: Config) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine, for this run only.

    Raises:
        PeerFailedError: Ray did not come up.
    """
    # Where an actor dies Ray prints a page to stdout, whatever its log level; ours is the STOPPED message.
    ray_worker._worker_logs_enabled = False
    # Engines idle while the learner works and the other way round, so their threads may add up to more than
    # the cores; Ray would otherwise wait for ever for a core that is never free.
    learner_cores = config.learner_ranks * config.learner_threads
    logical_cores = config.engines * config.engine_threads + learner_cores
    joins = bool(os.environ.get("RAY_ADDRESS"))
    own_cluster = {
        "num_cpus": max(logical_cores, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": 512 * 2**20,
        "_temp_dir": None if joins else str(leftovers().folder),
    }
    try:
        try:
            _init_ray({} if joins else own_cluster)
        except Exception:  # a bare Exception where one of its processes is not up within Ray's fixed 30 s
            if joins:
                raise
            # On a busy machine the second start finds Ray's files in memory and is several times faster.
            ray.shutdown()
            _init_ray(own_cluster)
    except Exception as error:
        raise PeerFailedError(f"Ray did not start: {error}") from error


def _init_ray(options: Mapping[str, Any]) -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def rank_names(config: Config) -> list[str]:
    """What the start screen calls each of the learner's processes."""
    if config.backend == "plain":
        return ["learner"]
    return [f"learner {rank}" for rank in range(config.learner_ranks)]


def held(config: Config, learner: Mapping[str, float]) -> str:
    """How many of the parameters a rank holds between two passes; "" with one process."""
    if config.backend == "plain":
        return ""
    return f", holds {int(learner['held_parameters']):,} of {int(learner['num_parameters']):,} parameters"


def communicators(config: Config) -> list[Link]:
    """The collectives of the learner's ranks, and what carries them."""
    if config.backend == "plain":
        return [Link(name="gradients", between="learner", by="none: one rank")]
    names = rank_names(config)
    between = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    carrier = COLLECTIVES[config.device]
    kind = f"DeepSpeed ZeRO {config.zero_stage}" if config.backend == "deepspeed" else "FSDP2"
    shards_gradients = config.zero_stage != 1
    sums = "reduce-scatter" if shards_gradients else "all-reduce"
    return [
        Link(name="gradients", between=between, by=f"{carrier}, {sums} ({kind})"),
        Link(name="weights", between=between, by=f"{carrier}, all-gather ({kind})"),
        Link(name="passes", between=between, by=f"{carrier}, all-reduce of one number"),
    ]


def start_facts(
    config: Config, machine: Machine, learner: Mapping[str, float], directory: RunDir
) -> StartFacts:
    """What the start screen tells."""
    names = [f"engine {number}" for number in range(config.engines)]
    ranks = rank_names(config)
    devices = ["cpu"] * (len(ranks) + len(names))
    if config.device == "cuda":
        own_gpus = CHANNELS[config.sync_backend].own_gpus or config.backend != "plain"
        devices = [f"cuda:{number if own_gpus else 0}" for number in range(len(ranks) + len(names))]
    by = "an adapter's files" if config.lora_sync == "adapter" else config.sync_backend
    agents = f"vLLM, {config.engine_dtype}; up to {config.num_concurrent} agents and their environments"
    return StartFacts(
        title=f"whetstone: {config.algorithm} on {config.env}",
        config=config,
        roles=[
            *(
                Role(
                    name=name,
                    device=device,
                    num_threads=config.learner_threads,
                    detail=f"rank {rank} of {len(ranks)}, {config.learner_dtype}"
                    f"{held(config, learner)}; idle while engines sample",
                )
                for rank, (name, device) in enumerate(zip(ranks, devices, strict=False))
            ),
            *(
                Role(name=name, device=device, num_threads=config.engine_threads, detail=agents)
                for name, device in zip(names, devices[len(ranks) :], strict=True)
            ),
        ],
        channels=[
            *(Link(name="weights", between=f"{ranks[0]} -> {name}", by=by) for name in names),
            *(Link(name="groups", between=f"{name} -> learner", by="Ray object store") for name in names),
        ],
        communicators=communicators(config),
        num_parameters=int(learner["num_parameters"]),
        num_trained=int(learner["num_trained"]),
        sync_bytes=int(learner["sync_bytes"]),
        num_cores=machine.cores,
        versions=stack_versions(),
        run_dir=str(directory.path),
        reward_note=facts.note if (facts := reward_facts(config)) else "",
        sandbox=sandbox_line(config),
    )
