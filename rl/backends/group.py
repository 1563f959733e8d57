"""The process group of a learner's ranks: how they find each other, and what they agree on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # torch.distributed has it, and says so to no type checker

COLLECTIVES = {"cpu": "gloo", "cuda": "nccl"}
"""torch's name of the communicator of each device."""

LOST_PEER = ("connection closed", "connection reset", "broken pipe", "timed out", "timeout", "socket", "nccl")
"""What stands in the message of a collective that a peer has left, or did not come to."""


class CollectiveError(RuntimeError):
    """A collective ended without an answer: a peer is gone or late. The cause lies in another rank."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of one learner find each other: rank 0's store."""

    host: str
    port: int


def open_store(host: str, num_ranks: int, timeout_s: float) -> TCPStore:
    """Rank 0's store, on a port that the system chooses: no other process can take it in between."""
    return TCPStore(
        host, 0, num_ranks, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
    )


def join(
    meeting: Meeting, *, rank: int, num_ranks: int, device: str, timeout_s: float, store: TCPStore | None
) -> None:
    """Become rank `rank` of the process's default group; no collective waits longer than `timeout_s`.

    Args:
        store: rank 0's own; None elsewhere.
    """
    timeout = timedelta(seconds=timeout_s)
    if store is None:
        store = TCPStore(
            meeting.host, meeting.port, num_ranks, is_master=False, timeout=timeout, wait_for_workers=False
        )
    if device == "cuda":
        torch.cuda.set_device(0)  # Ray shows each rank its own GPU only
    dist.init_process_group(
        COLLECTIVES[device], store=store, rank=rank, world_size=num_ranks, timeout=timeout
    )


def largest(number: int, device: torch.device) -> int:
    """The largest of the numbers that the ranks have. A collective: every rank must call it."""
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because of another rank."""
    return isinstance(error, dist.DistError) or any(part in str(error).lower() for part in LOST_PEER)
