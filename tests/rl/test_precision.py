"""Precision on purpose: loss scaling, logits and routers in the loss, and updates that must not happen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.gates import GateError, StepGates
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import metric_values
from rl.precision import Precision
from tests.tiny import load, make_group, make_tiny_mixture, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixture(tmp_path_factory.mktemp("mixture"))


def learner(
    folder: Path, algorithm: str = "dr_grpo", knobs: dict[str, Any] | None = None, **fields: Any
) -> Learner:
    row = get_algorithm(algorithm, **knobs or {})
    given = {"learning_rate": 1e-3, "num_updates": 10, **fields}
    return Learner(LearnerSpec(model=str(folder), algorithm=row, **given))


def ready(own: Learner, folder: Path) -> TrainBatch:
    members = [([[5, 6], [7, 8, 9], [10], [11]], 1.0), ([[5, 6], [12]], 0.0), ([[5, 6], [13, 14]], 0.5)]
    batch = make_batch([make_group(0, members, model=load(folder))])
    return own.spec.algorithm.assign_advantages(own.score(batch, own.spec.algorithm.needs))


def state_of(own: Learner) -> list[torch.Tensor]:
    """Every number that an update may move: weights, AdamW's moments, the schedule."""
    moments = [x for state in own.optimizer.adamw.state.values() for x in state.values()]
    rates = torch.tensor([group["lr"] for group in own.optimizer.adamw.param_groups])
    return [x.detach().clone() for x in (*own.policy.parameters(), *moments, rates)]


def test_a_gradient_that_is_not_finite_moves_nothing_and_its_batch_is_kept(folder, tmp_path):
    own = learner(folder, incidents=str(tmp_path / "incidents"), warmup_updates=5)
    batch = ready(own, folder)
    own.update(batch)
    before = state_of(own)
    handle = own.model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    values = metric_values(own.update(batch))
    handle.remove()
    assert values["optim/skipped_updates"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(own), strict=True))
    (kept,) = (tmp_path / "incidents").iterdir()
    assert kept.name == "update_000002"
    with np.load(kept / "batch.npz", allow_pickle=False) as arrays:
        for row, sample in enumerate(batch.samples):
            assert arrays[f"{row}/token_ids"].tolist() == sample.token_ids.tolist()
            np.testing.assert_array_equal(arrays[f"{row}/old_logprobs"], batch.old_logprobs[row])
    own.update(batch)  # and the run goes on
    assert not all(torch.equal(a, b) for a, b in zip(before, state_of(own), strict=True))


def test_the_run_stops_where_its_policy_says():
    skipped, sound = {"optim/skipped_updates": 0.5}, {"optim/skipped_updates": 0.0}
    gates = StepGates(gap_limit=1.0, max_skipped_steps=2, incidents="runs/x/incidents")
    for step, metrics in enumerate((skipped, sound, skipped), 2):
        gates.check(step, metrics)
    with pytest.raises(GateError, match=r"step 5: 50% of its updates .* kept in runs/x/incidents"):
        gates.check(5, skipped)
    with pytest.raises(GateError):
        StepGates(gap_limit=1.0, max_skipped_steps=1).check(2, skipped)


def test_float16_with_its_loss_scale_makes_nearly_the_float32_update(folder):
    updated = []
    for model in ("float32", "float16"):
        own = learner(folder, precision=Precision(model=model))
        values = metric_values(own.update(ready(own, folder)))
        assert values["optim/skipped_updates"] == 0.0
        updated.append(values)
    single, half = updated
    assert half["optim/loss_scale"] == 65536.0
    assert "optim/loss_scale" not in single
    assert half["optim/grad_norm"] == pytest.approx(single["optim/grad_norm"], rel=2e-2)  # unscaled before it


def test_a_loss_scale_that_overflows_is_halved_and_the_update_left_out(folder):
    own = learner(folder, precision=Precision(model="float16"))
    batch = ready(own, folder)
    own.optimizer.scaler.scale(torch.zeros(()))  # it exists from the first use on
    own.optimizer.scaler.update(2.0**126)
    before = [p.detach().clone() for p in own.policy.parameters()]
    assert metric_values(own.update(batch))["optim/skipped_updates"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, own.policy.parameters(), strict=True))
    assert own.optimizer.scaler.get_scale() == 2.0**125


def gradient(own: Learner, batch: TrainBatch) -> tuple[torch.Tensor, dict[str, float]]:
    own.policy.zero_grad()
    layout = batch.padded()
    loss, sums = own.spec.algorithm.loss(own.evaluate(layout), layout, batch.counts)
    loss.backward()
    grads = torch.cat([p.grad.flatten() for p in own.model.parameters() if p.grad is not None])
    return grads, metric_values(sums)


def test_the_z_loss_adds_the_gradient_of_the_mean_squared_log_z(folder):
    plain, shaped = learner(folder), learner(folder, knobs={"z_loss_coef": 0.1})
    batch = ready(plain, folder)
    own, values = gradient(shaped, batch)
    model, layout = load(folder), batch.padded()
    log_z = model(layout.token_ids).logits.logsumexp(-1)[:, :-1][layout.loss_mask[:, 1:]]
    definition = log_z.square().mean()
    (0.1 * definition).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(own - gradient(plain, batch)[0], expected, atol=2e-6, rtol=1e-3)
    assert values["policy/z_loss"] == pytest.approx(float(definition.detach()), rel=1e-5)


def test_a_mixtures_router_is_balanced_by_transformers_own_loss(mixture):
    own = learner(mixture, knobs={"router_aux_loss_coef": 0.5})
    batch = ready(own, mixture)
    both, values = gradient(own, batch)
    plain = learner(mixture)
    without, _ = gradient(plain, batch)
    layout, model = batch.padded(), load(mixture)
    outputs = model(layout.token_ids, attention_mask=layout.attention_mask, output_router_logits=True)
    assert values["policy/router_loss"] == pytest.approx(float(outputs.aux_loss.detach()), rel=1e-5)
    (0.5 * outputs.aux_loss).backward()
    expected = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )
    torch.testing.assert_close(both - without, expected, atol=2e-6, rtol=1e-3)


def test_precision_of_the_body_reaches_the_log_probs_and_not_their_dtype(folder):
    scored = {}
    for name in ("float32", "bfloat16"):
        own = learner(folder, precision=Precision(model=name))
        scored[name] = np.concatenate(ready(own, folder).old_logprobs)
        assert scored[name].dtype == np.float32
        assert all(p.dtype is torch.float32 for p in own.policy.parameters())
    difference = np.abs(scored["float32"] - scored["bfloat16"]).max()
    assert 1e-6 < difference < 0.05


def test_a_row_says_what_it_lacks(folder):
    own = learner(folder)
    layout = ready(own, folder).padded()
    row = replace(own.spec.algorithm, router_aux_loss_coef=0.1)
    with pytest.raises(ValueError, match="needs router_loss"):
        row.loss(own.evaluate(layout), layout, ready(own, folder).counts)
