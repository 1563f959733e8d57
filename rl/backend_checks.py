"""What a backend of the learner asks of the machine and of the other settings, checked before any process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl.config import Config
    from rl.objective import Objective

RANKED = ("backend", "learner_ranks", "zero_stage", "optimizer_offload")
"""Settings on which trained numbers depend by the order of sums only."""


def backend_problems(config: Config, *, num_gpus: int) -> Iterator[str]:
    """Ranks, stages, dtypes and channels that the chosen backend has not.

    Args:
        num_gpus: those that this run may use, 0 on a CPU.
    """
    ranks = config.learner_ranks
    if config.backend == "plain" and ranks > 1:
        yield (
            f"learner_ranks = {ranks} with backend = 'plain': plain torch is one rank; use fsdp or deepspeed"
        )
    if config.backend != "deepspeed" and config.zero_stage:
        yield (
            f"zero_stage = {config.zero_stage} with backend = {config.backend!r}: only deepspeed has ZeRO "
            "stages; leave it 0 or use backend deepspeed"
        )
    if config.optimizer_offload != "none" and not num_gpus and config.device != "cuda":
        yield (
            f"optimizer_offload = {config.optimizer_offload!r} has no effect without a GPU: the optimizer's "
            "state lies in main memory already; leave it out"
        )
    if config.backend == "plain":
        return
    if num_gpus and num_gpus < ranks + config.engines:
        yield (
            f"learner_ranks = {ranks} and engines = {config.engines} need {ranks + config.engines} GPUs, one "
            f"each, and there {'is 1' if num_gpus == 1 else f'are {num_gpus}'}; lower them, or use backend "
            "plain"
        )
    if config.sync_backend == "ipc":
        yield (
            f"sync_backend = 'ipc' with backend = {config.backend!r}: its ranks and the engines have a GPU "
            "each, and ipc stays within one; use nccl, shm or auto"
        )
    if config.determinism == "exact":
        yield (
            f"determinism = 'exact' with backend = {config.backend!r}: that several processes add up in the "
            "same order every time has not been shown; use plain or fast"
        )
    if config.backend == "deepspeed":
        yield from _deepspeed_problems(config)


def backend_row_problems(config: Config, algorithm: Objective) -> Iterator[str]:
    """Algorithms that the chosen backend cannot train."""
    if config.backend == "deepspeed" and algorithm.critic != "none":
        yield (
            f"algorithm = {config.algorithm!r} with backend = 'deepspeed': it has a critic, whose gradient "
            "norm is clipped apart from the policy's, and DeepSpeed has one norm for all; use fsdp or plain"
        )


def _deepspeed_problems(config: Config) -> Iterator[str]:
    if config.learner_dtype == "float16":
        yield (
            "learner_dtype = 'float16' with backend = 'deepspeed': its loss scale is not ours; use bfloat16 "
            "or float32, or backend fsdp"
        )
    if find_spec("deepspeed") is None:
        yield (
            "backend = 'deepspeed': the package deepspeed is not installed; bring it in with `make install`, "
            "or use backend fsdp, which torch has"
        )
    missing = [name for name, is_there in _tools(config.device).items() if not is_there]
    if missing:
        yield (
            f"backend = 'deepspeed': its communication extension is compiled at the first start, and there "
            f"is no {' and no '.join(missing)}; install g++ (apt-get install g++, or name another with CXX) "
            "and ninja (`make install`), or use backend fsdp, which needs no compiler"
        )


def _tools(device: str) -> dict[str, bool]:
    """What compiling the extension of a device needs, and whether it is there."""
    if device == "cuda":
        return {}  # nccl comes with torch
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    compiler = os.environ.get("CXX", "g++")
    return {
        f"C++ compiler ({compiler})": shutil.which(compiler) is not None,
        "ninja": shutil.which("ninja", path=path) is not None,
    }
