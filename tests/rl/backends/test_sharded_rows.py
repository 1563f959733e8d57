"""What a row of algorithms needs besides a policy is on several ranks what it is on one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import MetricSums, add_metrics, metric_values
from rl.precision import Precision
from rl.splitting import rows_by_rank, split_batch
from tests.rl.backends.test_sharded_updates import distance
from tests.rl.backends.working import run_ranks, tiny_spec, uneven_batch, whole_moments, whole_weights
from tests.tiny import make_tiny_mixture, make_tiny_model

GRADIENT = 1e-6
"""Largest |difference| of a parameter's gradient in its L2 norm: the order of float32 sums."""

HALF_GRADIENT = 2e-2
"""The same where products are of bfloat16, which has 8 bits: each rank rounds its own sums."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a learner made of one batch: its scores, and what two updates left behind."""

    scored: TrainBatch
    first: dict[str, np.ndarray]  # exp_avg after one update: (1 - beta_1) x the clipped gradient
    weights: dict[str, np.ndarray]
    sums: list[MetricSums]


def learned(spec: LearnerSpec, batch: TrainBatch, weighed: TrainBatch) -> Learned:
    """Score a part of a batch, then update twice on that part as it was weighed."""
    learner = Learner(spec)
    scored = learner.score(batch, spec.algorithm.needs)
    sums = [learner.update(weighed)]
    first = whole_moments(learner)
    sums.append(learner.update(weighed))
    return Learned(scored=scored, first=first, weights=whole_weights(learner), sums=sums)


def learned_each(spec: LearnerSpec, cases: list[tuple[LearnerSpec, TrainBatch, TrainBatch]]) -> list[Learned]:
    """One learner after another in the processes of one group: they take long to start."""
    return [learned(replace(own, rank=spec.rank), *parts) for own, *parts in cases]


def with_answers(batch: TrainBatch) -> TrainBatch:
    return replace(batch, samples=tuple(replace(sample, answer="7") for sample in batch.samples))


def row(name: str, **knobs: Any) -> dict[str, Any]:
    return {"algorithm": get_algorithm(name, **knobs)}


PLAIN: dict[str, dict[str, Any]] = {
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
HALF = {"bfloat16": row("grpo") | {"precision": Precision(model="bfloat16")}}


def differences(expected: Learned, ranks: Sequence[Learned], bound: float) -> Iterator[str]:
    """How scores, gradients, weights and metrics of ranks differ from those of one process."""
    rows = rows_by_rank(expected.scored.samples, len(ranks))
    for name, arrays in expected.scored.token_arrays.items():
        for own, rank in zip(rows, ranks, strict=True):
            pairs = zip((arrays[row] for row in own), rank.scored.token_arrays[name], strict=True)
            furthest = max(float(np.abs(one - other).max()) for one, other in pairs)
            if furthest > 10 * bound:
                yield f"{name} differ by {furthest:.2g}"
    for rank in ranks:
        if (furthest := distance(rank.first, expected.first)) > bound:
            yield f"gradients differ by {furthest:.2g}"
        if (furthest := distance(rank.weights, expected.weights)) > 10 * bound:
            yield f"weights differ by {furthest:.2g}"
    for number, sums in enumerate(expected.sums):
        wanted = metric_values(sums)
        found = metric_values(add_metrics([rank.sums[number] for rank in ranks]))
        if found != pytest.approx(wanted, rel=100 * bound, abs=bound):
            yield f"update {number}: {found} instead of {wanted}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cases", "bound"),
    [pytest.param(PLAIN, GRADIENT, id="float32"), pytest.param(HALF, HALF_GRADIENT, id="bfloat16")],
)
def test_every_kind_of_row_is_on_two_ranks_what_it_is_on_one(
    tmp_path: Path, cases: dict[str, dict[str, Any]], bound: float
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
        wrong += [f"{case}: {problem}" for problem in differences(expected, found, bound)]
    assert not wrong, "\n".join(wrong)
