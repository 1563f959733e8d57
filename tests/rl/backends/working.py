"""What the ranks of these tests do, in processes of their own that gloo connects."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl.algorithms import get_algorithm
from rl.backends.group import Meeting, join, open_store
from rl.backends.tensors import assign, whole
from rl.batch import TrainBatch, make_batch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import MetricSums
from tests.tiny import load, make_group

WAIT_S = 120.0


def run_ranks(work: Callable[..., Any], spec: LearnerSpec, *shares: Sequence[Any]) -> list[Any]:
    """`work(spec, *its shares)` in every rank's process; `shares` have one entry a rank each."""
    num_ranks = spec.num_ranks
    store = open_store("127.0.0.1", num_ranks, WAIT_S)
    with ProcessPoolExecutor(num_ranks, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(_joined, work, replace(spec, rank=rank), store.port, *(s[rank] for s in shares))
            for rank in range(num_ranks)
        ]
        return [future.result(2 * WAIT_S) for future in futures]


def _joined(work: Callable[..., Any], spec: LearnerSpec, port: int, *share: Any) -> Any:
    os.environ["DS_ACCELERATOR"] = "cpu"
    if torch.distributed.is_initialized():
        raise RuntimeError("one process was given two ranks")
    join(
        Meeting("127.0.0.1", port),
        rank=spec.rank,
        num_ranks=spec.num_ranks,
        device="cpu",
        timeout_s=WAIT_S,
        store=None,
    )
    try:
        return work(spec, *share)
    finally:
        torch.distributed.destroy_process_group()


def tiny_spec(folder: Path, algorithm: str = "dr_grpo", **fields: Any) -> LearnerSpec:
    given = {"learning_rate": 1e-3, "num_updates": 10, "micro_batch_size": 2, "lr_schedule": "linear"}
    return LearnerSpec(model=str(folder), algorithm=get_algorithm(algorithm), **given | fields)


def uneven_batch(folder: Path) -> TrainBatch:
    """Two groups of three trajectories of one to three turns and very different lengths."""
    model = load(folder)
    rng = np.random.default_rng(0)
    shapes = [(5, 3), (4, 2, 3, 6), (7, 5, 2, 1, 3, 9), (3, 30), (6, 4, 6, 4), (2, 1)]
    members = [
        ([[int(token) for token in rng.integers(4, 100, size=n)] for n in shape], float(index % 2))
        for index, shape in enumerate(shapes)
    ]
    return make_batch([make_group(0, members[:3], model=model), make_group(1, members[3:], model=model)])


def whole_weights(learner: Learner) -> dict[str, np.ndarray]:
    """Every trained parameter, gathered."""
    return {name: whole(p).cpu().numpy().copy() for name, p in learner.trained.named_parameters()}


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What updates left behind: by parameter its weights and AdamW's moments after the first and the last."""

    weights: dict[str, np.ndarray]
    first: dict[str, np.ndarray]  # exp_avg after one update: (1 - beta_1) x the clipped gradient
    last: dict[str, np.ndarray]
    sums: list[MetricSums]


def updated(spec: LearnerSpec, minibatches: Sequence[Any], kind: type[Learner] = Learner) -> Updated:
    """An update on each of this rank's parts."""
    return updates_of(kind(spec), minibatches)


def updates_of(learner: Learner, minibatches: Sequence[Any]) -> Updated:
    sums = [learner.update(minibatches[0])]
    first = whole_moments(learner)
    sums += [learner.update(minibatch) for minibatch in minibatches[1:]]
    return Updated(weights=whole_weights(learner), first=first, last=whole_moments(learner), sums=sums)


def poisoned(spec: LearnerSpec, minibatches: Sequence[Any]) -> Updated:
    """An update on each part, and after the first one more on it, while the model computes NaN."""
    learner = Learner(spec)
    norm = learner.model.model.norm.weight
    sums = [learner.update(minibatches[0])]
    first, kept = whole_moments(learner), whole(norm).clone()
    assign(norm, torch.full_like(kept, torch.nan))
    sums.append(learner.update(minibatches[0]))
    assign(norm, kept)
    sums += [learner.update(minibatch) for minibatch in minibatches[1:]]
    return Updated(weights=whole_weights(learner), first=first, last=whole_moments(learner), sums=sums)


def whole_moments(learner: Learner) -> dict[str, np.ndarray]:
    """AdamW's first moment of every trained parameter, gathered."""
    return {
        name: learner.backend.moments(learner.optimizer, p)["exp_avg"].cpu().numpy().copy()
        for name, p in learner.trained.named_parameters()
        if p.requires_grad
    }


def facts(spec: LearnerSpec) -> dict[str, float]:
    return Learner(spec).facts()


def checkpointed(spec: LearnerSpec, minibatches: Sequence[Any], path: str) -> list[MetricSums]:
    """Update on each part, save, then update once more on the last."""
    learner = Learner(spec)
    for minibatch in minibatches:
        learner.update(minibatch)
    learner.checkpoint(path, {})
    return [learner.update(minibatches[-1])]


def resumed(spec: LearnerSpec, minibatch: Any, path: str) -> tuple[dict[str, np.ndarray], list[MetricSums]]:
    """Go on from a checkpoint with one update."""
    learner = Learner(replace(spec, seed=9))
    learner.resume(path)
    return whole_weights(learner), [learner.update(minibatch)]


def served(spec: LearnerSpec, batch: TrainBatch, needs: frozenset[str]) -> dict[str, Any]:
    """What a rank says of weights that nobody has trained: scores, sketches, canaries, what was published."""
    learner = Learner(spec)
    before = whole_weights(learner)
    learner.perturb(1e-2, seed=1)
    moved = whole_weights(learner)
    learner.restore()
    manifest = learner.publish(3)
    try:
        return {
            "scored": learner.score(batch, needs),
            "sketches": learner.sketch_weights(7),
            "canaries": learner.score_sequences([[5, 6, 7, 8], [9, 10, 11]]),
            "crcs": None if manifest is None else {t.name: t.crc32 for t in manifest.tensors},
            "moved": moved,
            "restored": all(np.array_equal(x, before[name]) for name, x in whole_weights(learner).items()),
        }
    finally:
        learner.close()
