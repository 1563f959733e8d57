"""The only update of a step computes old_logprobs on its way: the numbers of scoring first, a pass less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rl import fused_head
from rl.algorithms import get_algorithm
from rl.batch import TrainBatch
from rl.learner import Learner
from rl.numerics import metric_values
from rl.precision import Precision
from tests.rl.test_learner import learner, multi_turn_batch
from tests.tiny import make_tiny_model

SCORED = frozenset({"old_logprobs"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def as_sampled(own: Learner, folder: Path, noise: float = 1e-6) -> TrainBatch:
    """The batch with log-probs of an engine that is the learner but for so many nats."""
    batch = own.score(multi_turn_batch(folder), SCORED)
    assert batch.old_logprobs is not None
    drawn = np.random.default_rng(0)
    samples = [
        replace(sample, rollout_logprobs=(old + drawn.normal(0, noise, len(old))).astype(np.float32))
        for sample, old in zip(batch.samples, batch.old_logprobs, strict=True)
    ]
    return replace(batch, samples=tuple(samples), old_logprobs=None)


def updated(own: Learner, batch: TrainBatch) -> tuple[torch.Tensor, dict[str, float]]:
    sums = metric_values(own.update(own.spec.algorithm.assign_advantages(batch)))
    return torch.cat([p.grad.flatten() for p in own.policy.parameters() if p.grad is not None]), sums


@pytest.mark.parametrize("micro_batch_size", [2, 6])
@pytest.mark.parametrize(
    ("algorithm", "knobs"),
    [
        ("grpo", {"kl_loss_coef": 0.0}),
        ("grpo", {}),  # with a reference
        ("dapo", {}),
        ("gspo", {}),
        ("cispo", {}),
        ("dr_grpo", {"entropy_coeff": 0.01}),
        ("grpo", {"rollout_is": "none", "bypass_mode": True}),
    ],
)
@pytest.mark.parametrize("noise", [1e-6, 3e-4])
def test_an_update_without_a_score_is_the_update_with_one(folder, algorithm, knobs, micro_batch_size, noise):
    row = get_algorithm(algorithm, **knobs)
    results = []
    for num_updates in (2, 1):
        own = learner(folder, row, micro_batch_size=micro_batch_size)
        sampled = as_sampled(own, folder, noise)
        own.optimizer.num_updates = (
            1  # behind the first update of a run, before which the policy scores in any case
        )
        batch = own.score(sampled, row.needs_for(num_updates))
        assert (batch.old_logprobs is None) == (num_updates == 1)
        results.append((*updated(own, batch), batch.old_logprobs or own.own_logprobs()))
    (wanted, scored_sums, scored), (found, sums, made) = results
    assert float((found - wanted).norm() / wanted.norm()) < 3e-5
    assert scored_sums.pop("policy/first_ratio_error") < 1e-5
    assert sums == pytest.approx(scored_sums, rel=1e-5, abs=1e-6)
    for array, expected in zip(made, scored, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "is_foreseen"), [("float32", True), ("bfloat16", False)], ids=["float32", "bfloat16"]
)
def test_an_engine_in_float32_tells_what_the_loss_will_ask_for(folder, engine, is_foreseen, monkeypatch):
    scales = []
    real = fused_head.scale_between
    monkeypatch.setattr(fused_head, "scale_between", lambda *given: scales.append(real(*given)) or scales[-1])
    own = learner(folder, get_algorithm("grpo", kl_loss_coef=0.0), precision=Precision(engine=engine))
    updated(own, as_sampled(own, folder))
    assert scales == [1.0] * len(scales)
    assert bool(scales) == is_foreseen


def test_after_a_pass_that_it_told_wrongly_it_is_not_asked_again(folder, monkeypatch):
    asked = []
    real = fused_head.scale_between
    monkeypatch.setattr(fused_head, "scale_between", lambda *given: asked.append(1) or real(*given))
    own = learner(folder, get_algorithm("grpo", kl_loss_coef=0.0), micro_batch_size=1)
    updated(own, as_sampled(own, folder, noise=0.1))
    assert len(asked) == 1


def test_before_a_runs_first_update_the_policy_scores_so_that_its_ratio_is_checked(folder):
    row = get_algorithm("dr_grpo")
    own = learner(folder, row)
    ratios = []
    for _ in range(2):
        batch = row.assign_advantages(own.score(multi_turn_batch(folder), row.needs_for(1)))
        ratios.append(metric_values(own.update(batch)).get("policy/first_ratio_error"))
    assert ratios[0] < 1e-5
    assert ratios[1] is None


def test_an_update_that_is_not_applied_keeps_what_it_started_from(folder, tmp_path):
    own = learner(folder, incidents=str(tmp_path / "incidents"))
    batch = own.spec.algorithm.assign_advantages(as_sampled(own, folder))
    wanted = own.score(batch, SCORED).old_logprobs
    assert wanted is not None
    handle = own.model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    own.update(batch)
    handle.remove()
    with np.load(tmp_path / "incidents" / "update_000001" / "batch.npz", allow_pickle=False) as arrays:
        for row, expected in enumerate(wanted):
            np.testing.assert_allclose(arrays[f"{row}/old_logprobs"], expected, atol=1e-6)


def test_of_a_later_update_old_logprobs_must_have_been_scored(folder):
    own = learner(folder)
    batch = own.spec.algorithm.assign_advantages(as_sampled(own, folder))
    before = torch.cat([p.detach().flatten().clone() for p in own.policy.parameters()])
    own.update(batch)
    moved = torch.cat([p.detach().flatten().clone() for p in own.policy.parameters()])
    assert not torch.equal(before, moved)
    with pytest.raises(ValueError, match="has no old_logprobs, and this update is not the first"):
        own.update(batch)
    assert torch.equal(moved, torch.cat([p.detach().flatten() for p in own.policy.parameters()]))


@pytest.mark.parametrize(
    ("algorithm", "knobs", "once"),
    [
        ("grpo", {}, {"ref_logprobs"}),
        ("dr_grpo", {}, set()),
        ("grpo", {"rollout_is": "none", "bypass_mode": True, "kl_loss_coef": 0.0}, set()),
        ("ppo", {}, {"old_logprobs", "old_values", "ref_logprobs"}),  # the critic scores with it
        ("reinforce_pp", {"kl_coef": 0.01}, {"old_logprobs", "ref_logprobs"}),  # its advantages hold a KL
    ],
)
def test_what_a_step_of_one_update_needs_and_what_one_of_two(algorithm, knobs, once):
    row = get_algorithm(algorithm, **knobs)
    assert row.needs_for(1) == once
    assert row.needs_for(2) == once | {"old_logprobs"}
