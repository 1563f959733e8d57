"""Several ranks make the updates of one: FSDP2 and ZeRO, uneven parts, ranks without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.batch import TrainBatch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import MetricSums, add_metrics, metric_values
from rl.splitting import split_batch
from tests.rl.backends.working import Updated, facts, poisoned, run_ranks, tiny_spec, uneven_batch, updated
from tests.tiny import make_tiny_model

GRADIENT = 1e-6
"""Largest |difference| of a parameter's gradient in its L2 norm: the order of float32 sums."""

WEIGHTS = 1e-5
"""The same of its weights after five updates: AdamW turns a rounding of a gradient near 0 into a step."""

EXTRA = [pytest.mark.slow, pytest.mark.extra]

SHARDED = [
    pytest.param("fsdp", 0, 2, id="fsdp"),
    pytest.param("fsdp", 0, 3, id="fsdp-3-ranks", marks=EXTRA),
    # The first start compiles DeepSpeed's communication extension.
    pytest.param("deepspeed", 1, 2, id="zero-1", marks=[*EXTRA, pytest.mark.timeout(600)]),
    pytest.param("deepspeed", 2, 2, id="zero-2", marks=[*EXTRA, pytest.mark.timeout(600)]),
    pytest.param("deepspeed", 3, 2, id="zero-3", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def minibatches_of(spec: LearnerSpec, folder: Path) -> list[TrainBatch]:
    """A whole batch, three of two trajectories, one of a single one, one with nothing to train."""
    own = Learner(spec)
    batch = spec.algorithm.assign_advantages(own.score(uneven_batch(folder), spec.algorithm.needs))
    chosen = [np.arange(6) == 4, np.zeros(6, np.bool_)]
    return [batch, *batch.minibatches(3), *(batch.keep(kept) for kept in chosen)]


def on_ranks(spec: LearnerSpec, minibatches: Sequence[TrainBatch], work: Any = updated) -> list[Updated]:
    parts = [split_batch(minibatch, spec.num_ranks) for minibatch in minibatches]
    return run_ranks(work, spec, [[part[rank] for part in parts] for rank in range(spec.num_ranks)])


def distance(those: Mapping[str, np.ndarray], these: Mapping[str, np.ndarray]) -> float:
    """The largest difference of a tensor, relative to it, in L2 norms; of one that is 0, infinite or 0."""
    assert those.keys() == these.keys()
    norms = [(float(np.linalg.norm(those[name] - x)), float(np.linalg.norm(x))) for name, x in these.items()]
    return max(difference / norm if norm else inf if difference else 0.0 for difference, norm in norms)


@pytest.mark.parametrize(("backend", "stage", "num_ranks"), SHARDED)
def test_ranks_make_the_updates_of_one(folder: Path, backend: str, stage: int, num_ranks: int) -> None:
    spec = tiny_spec(folder, max_grad_norm=0.02)  # the first gradient is clipped
    minibatches = minibatches_of(spec, folder)
    alone = updated(spec, minibatches)
    ranks = on_ranks(replace(spec, backend=backend, zero_stage=stage, num_ranks=num_ranks), minibatches)
    sizes = [[len(part.samples) for part in split_batch(batch, num_ranks)] for batch in minibatches]
    assert sorted(sizes[-2]) == [0] * (num_ranks - 1) + [1]  # one rank has something to train
    assert sizes[-1] == [0] * num_ranks
    for rank in ranks:
        assert distance(rank.first, alone.first) <= GRADIENT
        assert distance(rank.weights, alone.weights) <= WEIGHTS
    for index, expected in enumerate(alone.sums):
        assert_equal_metrics(expected, [rank.sums[index] for rank in ranks])
    norms = [metric_values(sums)["optim/grad_norm"] for sums in alone.sums]
    assert norms[0] > 0.02
    assert norms[-1] == 0.0


def assert_equal_metrics(expected: MetricSums, shares: Sequence[MetricSums]) -> None:
    found = metric_values(add_metrics(shares))
    assert found == pytest.approx(metric_values(expected), rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "stage"),
    [
        pytest.param("fsdp", 0, marks=pytest.mark.extra),
        ("deepspeed", 3),
        pytest.param("deepspeed", 2, marks=pytest.mark.extra),
    ],
)
def test_a_rank_with_nothing_changes_no_gradient(folder: Path, backend: str, stage: int) -> None:
    """The same samples on both ranks, and all of them on one."""
    spec = tiny_spec(folder)
    batch = minibatches_of(spec, folder)[0]
    two = replace(spec, backend=backend, zero_stage=stage, num_ranks=2)
    everything = list(range(len(batch.samples)))
    whole, nothing = batch.split([everything, []])
    lonely = run_ranks(updated, two, [[nothing], [whole]])
    alone = updated(spec, [batch])
    assert distance(lonely[0].first, alone.first) <= GRADIENT
    assert distance(lonely[1].first, alone.first) <= GRADIENT


@pytest.mark.parametrize(
    ("backend", "stage", "share"),
    [
        pytest.param("fsdp", 0, 0.5, id="fsdp", marks=EXTRA),
        pytest.param("deepspeed", 3, 0.5, id="zero-3", marks=pytest.mark.slow),
        pytest.param("deepspeed", 2, 1.0, id="zero-2", marks=EXTRA),
    ],
)
def test_each_rank_holds_its_share_of_the_parameters(
    folder: Path, backend: str, stage: int, share: float
) -> None:
    spec = tiny_spec(folder)
    num_parameters = Learner(spec).facts()["num_parameters"]
    for told in run_ranks(facts, replace(spec, backend=backend, zero_stage=stage, num_ranks=2)):
        assert told["num_parameters"] == num_parameters
        assert told["held_parameters"] / num_parameters == pytest.approx(share, abs=0.02)


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize(("backend", "stage"), [("fsdp", 0), ("deepspeed", 3), ("deepspeed", 1)])
def test_a_gradient_that_is_not_finite_moves_nothing(folder: Path, backend: str, stage: int) -> None:
    spec = tiny_spec(folder, max_grad_norm=0.02)
    good = minibatches_of(spec, folder)[0]
    spec = replace(spec, backend=backend, zero_stage=stage, num_ranks=2)
    ranks = on_ranks(spec, [good, good], poisoned)
    undisturbed = on_ranks(spec, [good, good])
    assert [metric_values(rank.sums[1])["optim/skipped_updates"] for rank in ranks] == [1.0, 1.0]
    for rank in ranks:
        assert metric_values(rank.sums[2])["optim/skipped_updates"] == 0.0
        assert distance(rank.last, undisturbed[0].last) == 0.0
        assert distance(rank.weights, undisturbed[0].weights) == 0.0
