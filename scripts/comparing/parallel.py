"""Cells side by side as Ray tasks, each with its share of the cores and GPUs."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from recipes.leftovers import leftovers
from rl.machine import Machine
from scripts.comparing.cells import GRACE_S, Job, Outcome, Say, run_job, write_outcome
from scripts.comparing.names import CompareError
from scripts.comparing.shares import at_once, shares


def in_ray(jobs: Sequence[Job], num_parallel: int, say: Say) -> Generator[tuple[Job, Outcome]]:
    """Jobs as Ray tasks on this machine, or on the cluster that RAY_ADDRESS names; each as it ends.

    On a cluster the folder must be on a file system that all its machines share.
    """
    with _ray_session(Machine.here().cores):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        machines = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
        share = shares(machines, num_parallel)
        if (num := at_once(machines, share)) < num_parallel:
            say(f"{num} runs at a time rather than {num_parallel}: no more fit the machines of the cluster")
        remote = ray.remote(_run_in_worker).options(num_cpus=share.cores, num_gpus=share.gpus, max_retries=0)
        tasks = {remote.remote(job): job for job in jobs}
        try:
            while tasks:
                (done, *_), _ = ray.wait(list(tasks), num_returns=1)
                job = tasks.pop(done)
                yield job, _outcome(done, job)
        except BaseException:
            for task in tasks:
                ray.cancel(task)
            ray.wait(list(tasks), num_returns=len(tasks), timeout=GRACE_S + 10)
            raise


def _run_in_worker(job: Job) -> Outcome:
    """`run_job` in a Ray worker, whose cluster is not the run's: a run starts its own."""
    return run_job(job, {name: value for name, value in os.environ.items() if not name.startswith("RAY_")})


def _outcome(task: ray.ObjectRef, job: Job) -> Outcome:
    """What the task returned; where its worker died, memory or machine gone, the cell failed of that."""
    try:
        return ray.get(task)
    except RayTaskError as error:  # raised by `run_job`: a refusal of ours, or a bug
        if isinstance(error.cause, CompareError):
            raise error.cause from None
        raise
    except RayError as error:
        started = job.started.stat().st_mtime if job.started.is_file() else time.time()
        outcome = Outcome(
            command=job.command,
            exit_code=-signal.SIGKILL,  # a run dies with its worker
            seconds=round(time.time() - started, 1),
            reason=f"its Ray worker died: {' '.join(str(error).split())[:300]}",
        )
        write_outcome(job, outcome)
        return outcome


@contextmanager
def _ray_session(num_cores: int) -> Iterator[None]:
    joins = bool(os.environ.get("RAY_ADDRESS"))
    own: dict[str, Any] = {}
    if not joins:
        folder = str(leftovers().folder)
        own = {
            "num_cpus": num_cores,
            "include_dashboard": False,
            "object_store_memory": 10**8,
            "_temp_dir": folder,
        }
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield
    finally:
        ray.shutdown()
