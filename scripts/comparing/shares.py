"""How many cores and GPUs each of several runs gets, so that all of them run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.comparing.names import CompareError

Machines = Sequence[tuple[int, int]]
"""Cores and GPUs of each machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one run gets: whole cores; whole GPUs, or one part of k of one GPU (Ray refuses 1.5)."""

    cores: int
    gpus: float


def shares(machines: Machines, num: int) -> Share:
    """The largest equal share of which `num` fit the machines. CompareError where there are too few cores.

    Example:
        16 cores and 2 GPUs for 3 runs: 5 cores and half a GPU each; with 2/3 of one only two would run.
    """
    cores, gpus = (_whole([machine[kind] for machine in machines], num) for kind in (0, 1))
    if cores == 0:
        total = sum(num_cores for num_cores, _ in machines)
        raise CompareError(
            f"parallel = {num}: a run needs a core, and there are {total}; give --parallel {total} or fewer"
        )
    num_gpus = sum(num_gpus for _, num_gpus in machines)
    return Share(cores=cores, gpus=gpus or (1 / -(-num // num_gpus) if num_gpus else 0))


def at_once(machines: Machines, share: Share) -> int:
    """How many runs fit the machines with `share` each."""
    return sum(
        min(cores // share.cores, int(gpus / share.gpus + 1e-9) if share.gpus else cores)
        for cores, gpus in machines
    )


def _whole(amounts: Sequence[int], num: int) -> int:
    """The largest whole number of which `num` fit in `amounts`; 0 where not even 1 does."""
    fits = (size for size in range(max(amounts), 0, -1) if sum(amount // size for amount in amounts) >= num)
    return next(fits, 0)
