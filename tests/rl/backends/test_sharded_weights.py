"""Sharded weights are published, sketched, scored with and perturbed as if they were in one place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rl.splitting import rows_by_rank
from rollout.weight_sketch import compare_sketches
from tests.rl.backends.working import run_ranks, served, tiny_spec, uneven_batch
from tests.tiny import make_tiny_model

BACKENDS = [
    pytest.param("fsdp", 0, id="fsdp"),
    pytest.param("deepspeed", 3, id="zero-3", marks=pytest.mark.slow),
    pytest.param("deepspeed", 2, id="zero-2", marks=[pytest.mark.slow, pytest.mark.extra]),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("backend", "stage"), BACKENDS)
@pytest.mark.parametrize(
    "tied", [True, pytest.param(False, marks=[pytest.mark.slow, pytest.mark.extra])], ids=["tied", "untied"]
)
def test_what_ranks_serve_is_what_one_serves(tmp_path: Path, backend: str, stage: int, tied: bool) -> None:
    spec = tiny_spec(make_tiny_model(tmp_path / "model", tied=tied), "grpo")
    batch = uneven_batch(tmp_path / "model")
    needs = spec.algorithm.needs
    alone = served(spec, batch, needs)
    rows = rows_by_rank(batch.samples, 2)
    sharded = replace(spec, backend=backend, zero_stage=stage, num_ranks=2)
    ranks = run_ranks(served, sharded, batch.split(rows), [needs, needs])
    assert [rank["restored"] for rank in (alone, *ranks)] == [True] * 3
    assert ranks[0]["crcs"] == alone["crcs"]  # every bit of every tensor
    assert ranks[1]["crcs"] is None
    assert ranks[0]["sketches"].keys() == alone["sketches"].keys()
    compare_sketches(ranks[0]["sketches"], alone["sketches"], dtype="float32", who="rank 0")
    for rank in ranks:
        assert all(np.array_equal(x, alone["moved"][name]) for name, x in rank["moved"].items())
        for found, expected in zip(rank["canaries"], alone["canaries"], strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6)
    for name in ("old_logprobs", "ref_logprobs"):
        for own, rank in zip(rows, ranks, strict=True):
            for row, found in zip(own, getattr(rank["scored"], name), strict=True):
                np.testing.assert_allclose(found, getattr(alone["scored"], name)[row], atol=2e-6)
