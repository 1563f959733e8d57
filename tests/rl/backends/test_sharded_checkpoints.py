"""A checkpoint is of no backend: what several ranks saved, one goes on with, and the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.backends.plain import PlainBackend
from rl.checkpoint import CheckpointError, verify
from rl.learner import Learner
from rl.numerics import MetricSums, add_metrics, metric_values
from rl.splitting import split_batch
from tests.rl.backends.test_sharded_updates import minibatches_of
from tests.rl.backends.working import checkpointed, resumed, run_ranks, tiny_spec, updated
from tests.tiny import load, make_tiny_model

PLAIN = ("plain", 0, 1)
FSDP = ("fsdp", 0, 2)
ZERO_3 = ("deepspeed", 3, 2)
ZERO_2 = ("deepspeed", 2, 3)


EXTRA = [pytest.mark.slow, pytest.mark.extra]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.mark.parametrize(
    ("saving", "going_on"),
    [
        pytest.param(FSDP, PLAIN, id="fsdp-plain"),
        pytest.param(PLAIN, FSDP, id="plain-fsdp", marks=EXTRA),
        pytest.param(ZERO_3, PLAIN, id="zero3-plain", marks=pytest.mark.slow),
        pytest.param(ZERO_3, FSDP, id="zero3-fsdp", marks=EXTRA),
        pytest.param(FSDP, ZERO_3, id="fsdp-zero3", marks=EXTRA),
        pytest.param(ZERO_2, ZERO_3, id="zero2-zero3", marks=EXTRA),
        pytest.param(ZERO_3, ZERO_2, id="zero3-zero2", marks=EXTRA),
    ],
)
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_the_same_losses(folder: Path, tmp_path: Path, saving: Any, going_on: Any) -> None:
    spec = tiny_spec(folder)
    minibatches = minibatches_of(spec, folder)[:4]
    unbroken = updated(spec, [*minibatches, minibatches[-1]])
    path = tmp_path / "step_000004"
    saved = run(checkpointed, spec, saving, minibatches, str(path))
    verify(path)
    assert type(load(path)).__name__ == "Qwen3ForCausalLM"
    assert (path / "config.json").read_text().count("FSDP") == 0
    then = run(resumed, spec, going_on, minibatches[-1], str(path))
    for sums in (add_metrics(rank[-1][0] for rank in part) for part in (saved, then)):
        assert_same_losses(sums, unbroken.sums[-1])
    restored = then[0][0]
    in_file = {f"policy.model.{name}": p.detach().numpy() for name, p in load(path).named_parameters()}
    assert len(in_file) > 10
    for name, weights in in_file.items():
        np.testing.assert_array_equal(restored[name], weights, err_msg=name)


def assert_same_losses(found: MetricSums, expected: MetricSums) -> None:
    numbers = metric_values(found)
    assert {"policy/loss", "optim/lr", "optim/grad_norm"} <= numbers.keys()
    assert numbers == pytest.approx(metric_values(expected), rel=2e-4, abs=2e-6)


def run(work: Any, spec: Any, where: tuple[str, int, int], minibatches: Any, path: str) -> list[Any]:
    """`work` on the ranks that `where` says: backend, ZeRO stage, number of ranks."""
    backend, stage, num_ranks = where
    spec = replace(spec, backend=backend, zero_stage=stage, num_ranks=num_ranks)
    several = isinstance(minibatches, list)
    if backend == "plain":
        answer = work(spec, minibatches, path)
        return [answer if several is False else (answer,)]
    parts = [split_batch(each, num_ranks) for each in (minibatches if several else [minibatches])]
    shares = [[part[rank] for part in parts] if several else parts[0][rank] for rank in range(num_ranks)]
    answers = run_ranks(work, spec, shares, [path] * num_ranks)
    return [(answer,) if several else answer for answer in answers]


def test_another_architecture_is_refused_with_the_tensors_that_differ(folder: Path, tmp_path: Path) -> None:
    spec = tiny_spec(folder)
    larger = make_tiny_model(tmp_path / "larger", tied=False, num_layers=3)
    Learner(replace(spec, model=str(larger))).checkpoint(str(tmp_path / "step_000001"), {})
    own = Learner(spec)
    before = [p.detach().clone() for p in own.policy.parameters()]
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: .*layers\.2.*and .* more"):
        own.resume(str(tmp_path / "step_000001"))
    assert all(np.array_equal(p.detach(), q) for p, q in zip(own.policy.parameters(), before, strict=True))


def test_plain_torch_keeps_no_moments_of_what_was_not_trained(folder: Path) -> None:
    own = Learner(tiny_spec(folder))
    assert isinstance(own.backend, PlainBackend)
    assert all(not own.backend.moments(own.optimizer, p) for p in own.trained.parameters())
