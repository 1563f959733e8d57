"""What a row of algorithms needs besides a policy is on several ranks what it is on one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import add_metrics, metric_values
from rl.precision import Precision
from rl.splitting import rows_by_rank, split_batch
from tests.rl.backends.test_sharded_updates import GRADIENT, WEIGHTS, distance
from tests.rl.backends.working import Updated, run_ranks, tiny_spec, uneven_batch, updates_of
from tests.tiny import make_tiny_mixture, make_tiny_model


class Bounds(NamedTuple):
    """Largest differences: of gradients and weights in their L2 norms, of metrics, of scores in nats."""

    gradient: float
    weights: float
    metrics: float
    scores: float


SINGLE = Bounds(gradient=GRADIENT, weights=WEIGHTS, metrics=1e-5, scores=2e-6)
HALF = Bounds(gradient=2e-2, weights=1e-2, metrics=5e-3, scores=2e-2)
"""Products of bfloat16 have 8 bits, and each rank rounds its own sums."""


class Learned(NamedTuple):
    """What a learner made of one batch: its scores, and what two updates left behind."""

    scored: TrainBatch
    updated: Updated


def learned(spec: LearnerSpec, batch: TrainBatch, weighed: TrainBatch) -> Learned:
    """Score a part of a batch, then update twice on that part as it was weighed."""
    learner = Learner(spec)
    return Learned(learner.score(batch, spec.algorithm.needs), updates_of(learner, [weighed, weighed]))


def learned_each(spec: LearnerSpec, cases: list[tuple[LearnerSpec, TrainBatch, TrainBatch]]) -> list[Learned]:
    """One learner after another in the processes of one group: they take long to start."""
    return [learned(replace(own, rank=spec.rank), *parts) for own, *parts in cases]


def with_answers(batch: TrainBatch) -> TrainBatch:
    return replace(batch, samples=tuple(replace(sample, answer="7") for sample in batch.samples))


def row(name: str, **knobs: Any) -> dict[str, Any]:
    return {"algorithm": get_algorithm(name, **knobs)}


IN_SINGLE: dict[str, dict[str, Any]] = {
    "a critic's head on the policy": row("ppo") | {"critic_lr": 1e-3},
    "a critic with a body": row("ppo", critic="separate") | {"critic_lr": 1e-3},
    "whole distributions of a teacher": row("jsd") | {"teacher": "a teacher"},
    "a teacher's log-probs": row("opd") | {"teacher": "a teacher"},
    "itself behind a hint": row("opsd"),
    "geometric means": row("gmpo"),
    "sequence ratios": row("gspo"),
    "passes of tokens": row("grpo") | {"micro_batch_tokens": 120},
    "layers computed again": row("grpo") | {"activation_checkpointing": True},
    # Not balanced: that loss is of each pass, no sum over tokens, and passes are those of a rank.
    "a mixture": row("grpo") | {"model": "a mixture"},
}
IN_HALF = {"bfloat16": row("grpo") | {"precision": Precision(model="bfloat16")}}


def differences(expected: Learned, ranks: Sequence[Learned], bounds: Bounds) -> Iterator[str]:
    """How scores, gradients, weights and metrics of ranks differ from those of one process."""
    rows = rows_by_rank(expected.scored.samples, len(ranks))
    for name, arrays in expected.scored.token_arrays.items():
        for own, rank in zip(rows, ranks, strict=True):
            pairs = zip((arrays[row] for row in own), rank.scored.token_arrays[name], strict=True)
            furthest = max(float(np.abs(one - other).max()) for one, other in pairs)
            if furthest > bounds.scores:
                yield f"{name} differ by {furthest:.2g}"
    for rank in ranks:
        if (furthest := distance(rank.updated.first, expected.updated.first)) > bounds.gradient:
            yield f"gradients differ by {furthest:.2g}"
        if (furthest := distance(rank.updated.weights, expected.updated.weights)) > bounds.weights:
            yield f"weights differ by {furthest:.2g}"
    for number, sums in enumerate(expected.updated.sums):
        wanted = metric_values(sums)
        found = metric_values(add_metrics([rank.updated.sums[number] for rank in ranks]))
        if found != pytest.approx(wanted, rel=bounds.metrics, abs=bounds.metrics / 10):
            yield f"update {number}: {found} instead of {wanted}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cases", "bounds"),
    [pytest.param(IN_SINGLE, SINGLE, id="float32"), pytest.param(IN_HALF, HALF, id="bfloat16")],
)
def test_every_kind_of_row_is_on_two_ranks_what_it_is_on_one(
    tmp_path: Path, cases: dict[str, dict[str, Any]], bounds: Bounds
) -> None:
    make_tiny_model(tmp_path / "model", tied=True)
    make_tiny_model(tmp_path / "a teacher", tied=True, seed=1)
    make_tiny_mixture(tmp_path / "a mixture")
    base = tiny_spec(tmp_path / "model", max_grad_norm=0.02)
    alone, sharded = [], []
    for changes in cases.values():
        folders = {key: str(tmp_path / changes[key]) for key in ("model", "teacher") if key in changes}
        spec = replace(base, **changes | folders)
        batch = with_answers(uneven_batch(Path(spec.model)))
        scored = Learner(spec).score(batch, spec.algorithm.needs)
        weighed = spec.algorithm.assign_advantages(scored)
        alone.append(learned(spec, batch, weighed))
        parts = split_batch(batch, 2), split_batch(weighed, 2)
        sharded.append((replace(spec, backend="fsdp", num_ranks=2), *parts))
    shares = [[(spec, one[rank], two[rank]) for spec, one, two in sharded] for rank in range(2)]
    ranks = run_ranks(learned_each, replace(base, backend="fsdp", num_ranks=2), shares)
    wrong: list[str] = []
    for case, expected, found in zip(cases, alone, zip(*ranks, strict=True), strict=True):
        wrong += [f"{case}: {problem}" for problem in differences(expected, found, bounds)]
    assert not wrong, "\n".join(wrong)
