"""The learner: the update that the mathematics says, however a batch is split; weights to be trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import metric_values
from rl.optimizer import learning_rate_factor
from rl.policy_gradient import PolicyGradient
from rl.precision import Precision
from tests.tiny import load, make_group, make_tiny_model, reference_logprobs

ON_POLICY = frozenset({"old_logprobs"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def learner(folder: Path, algorithm: str | PolicyGradient = "dr_grpo", **fields: Any) -> Learner:
    row = get_algorithm(algorithm) if isinstance(algorithm, str) else algorithm
    return Learner(
        LearnerSpec(
            **({"model": str(folder), "algorithm": row, "learning_rate": 1e-3, "num_updates": 10} | fields)
        )
    )


def multi_turn_batch(folder: Path) -> TrainBatch:
    """Two groups of three trajectories of one to three turns and very different lengths."""
    model = load(folder)
    rng = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return [int(token) for token in rng.integers(4, 100, size=length)]

    shapes = [(5, 3), (4, 2, 3, 6), (7, 5, 2, 1, 3, 9), (3, 30), (6, 4, 6, 4), (2, 1)]
    members = [([ids(n) for n in shape], float(index % 2)) for index, shape in enumerate(shapes)]
    return make_batch([make_group(0, members[:3], model=model), make_group(1, members[3:], model=model)])


def ready(own: Learner, folder: Path) -> TrainBatch:
    """The batch, scored and weighed for an update."""
    row = own.spec.algorithm
    return row.assign_advantages(own.score(multi_turn_batch(folder), row.needs))


def weights(of: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.policy.parameters()])


def test_scores_are_the_definition_whatever_the_padding(folder: Path) -> None:
    batch = multi_turn_batch(folder)
    model = load(folder)
    for micro_batch_size in (1, 6):
        scored = learner(folder, micro_batch_size=micro_batch_size).score(batch, ON_POLICY)
        assert scored.old_logprobs is not None
        for sample, old in zip(scored.samples, scored.old_logprobs, strict=True):
            reference = np.concatenate([[0.0], reference_logprobs(model, sample.token_ids.tolist())])
            np.testing.assert_allclose(old[sample.loss_mask], reference[sample.loss_mask], atol=2e-6)
            assert not old[~sample.loss_mask].any()


def test_the_first_update_starts_at_ratio_one_and_clips_nothing(folder: Path) -> None:
    own = learner(folder, "grpo")
    batch = own.spec.algorithm.assign_advantages(
        own.score(multi_turn_batch(folder), own.spec.algorithm.needs)
    )
    first, second = (metric_values(own.update(batch)) for _ in range(2))
    assert first["policy/first_ratio_error"] < 1e-5
    assert first["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert first["policy/clip_frac_low"] == first["policy/clip_frac_high"] == 0.0
    assert first["policy/kl_ref_k3"] == pytest.approx(0.0, abs=1e-9)
    assert "policy/first_ratio_error" not in second
    assert abs(second["policy/ratio_mean"] - 1.0) > 1e-4  # the update moved the policy


def test_in_bypass_mode_the_gap_of_a_later_update_is_that_of_the_first(folder: Path) -> None:
    own = learner(folder, algorithm=get_algorithm("dapo", bypass_mode=True, rollout_is="none"))
    own.perturb(0.05, seed=1)  # a gap to measure: the engine's log-probs are those of the weights before
    row = own.spec.algorithm
    batch = row.assign_advantages(own.score(multi_turn_batch(folder), row.needs_for(2)))
    first, second = (metric_values(own.update(batch)) for _ in range(2))
    gaps = [{name: x for name, x in values.items() if name.startswith("gap/")} for values in (first, second)]
    assert gaps[0]["gap/abs_mean"] > 1e-3
    assert gaps[0] == gaps[1]  # scored once, before both updates
    assert abs(second["policy/ratio_mean"] - first["policy/ratio_mean"]) > 1e-4  # the policy moved


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "rloo", "reinforce"])
def test_micro_batches_change_neither_gradient_nor_metrics(folder: Path, algorithm: str) -> None:
    results = []
    for micro_batch_size in (1, 4, 6):
        own = learner(folder, algorithm, micro_batch_size=micro_batch_size)
        metrics = metric_values(own.update(ready(own, folder)))
        gradient = torch.cat([p.grad.flatten() for p in own.policy.parameters() if p.grad is not None])
        results.append((gradient, metrics))
    whole_gradient, whole_metrics = results[-1]
    assert whole_gradient.norm() > 1e-3
    for gradient, metrics in results[:-1]:
        assert torch.allclose(gradient, whole_gradient, atol=1e-6 * whole_gradient.abs().max())
        assert metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)


def test_garbage_at_masked_positions_does_not_change_the_update(folder: Path) -> None:
    updated = []
    for garbage in (0.0, np.nan, np.inf, 1e9):
        own = learner(folder)
        batch = ready(own, folder)
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        masks = [sample.loss_mask for sample in batch.samples]
        spoiled = replace(
            batch,
            samples=tuple(
                replace(s, rollout_logprobs=np.where(s.loss_mask, s.rollout_logprobs, np.float32(garbage)))
                for s in batch.samples
            ),
            old_logprobs=tuple(
                np.where(m, a, np.float32(garbage)) for m, a in zip(masks, batch.old_logprobs, strict=True)
            ),
            advantages=tuple(
                np.where(m, a, np.float32(garbage)) for m, a in zip(masks, batch.advantages, strict=True)
            ),
        )
        own.update(spoiled)
        updated.append(weights(own))
    assert all(torch.equal(updated[0], other) for other in updated[1:])


@pytest.mark.parametrize("model", ["float32", "float16"])
def test_an_update_with_nothing_to_train_moves_the_schedule_alone(folder: Path, model: Any) -> None:
    own = learner(folder, precision=Precision(model=model))
    batch = ready(own, folder)
    before = weights(own)
    metrics = metric_values(own.update(batch.keep(np.zeros(len(batch.trajectory_ids), np.bool_))))
    assert torch.equal(before, weights(own))
    assert (metrics["optim/grad_norm"], metrics["optim/skipped_updates"]) == (0, 0)
    assert own.optimizer.schedule.last_epoch == own.optimizer.num_updates == 1
    assert own.is_first_update  # the ratio is still to be checked
    own.update(batch)
    assert not torch.equal(before, weights(own))


def test_learning_rate_zero_leaves_every_weight_bit_identical(folder: Path) -> None:
    own = learner(folder, learning_rate=0.0)
    before = weights(own)
    own.update(ready(own, folder))
    assert torch.equal(before, weights(own))


def test_a_gradient_that_is_not_finite_is_counted_and_not_applied(folder: Path) -> None:
    own = learner(folder)
    batch = ready(own, folder)
    with torch.no_grad():
        own.model.model.norm.weight[3] = float("nan")
    before = weights(own)
    metrics = metric_values(own.update(batch))
    assert metrics["optim/skipped_updates"] == 1.0
    assert torch.equal(before.nan_to_num(7.0), weights(own).nan_to_num(7.0))


def test_restore_takes_a_perturbation_back_bit_for_bit(folder: Path) -> None:
    own = learner(folder)
    before = weights(own)
    own.perturb(1e-2, seed=1)
    changed = [
        not torch.equal(p, q) for p, q in zip(own.policy.parameters(), load(folder).parameters(), strict=True)
    ]
    assert all(changed)  # every tensor: a stale one must show
    own.restore()
    assert torch.equal(before, weights(own))
    with pytest.raises(ValueError, match="restore without a perturb"):
        own.restore()


def test_a_saved_policy_is_what_plain_transformers_loads(folder: Path, tmp_path: Path) -> None:
    own = learner(folder)
    own.update(ready(own, folder))
    own.checkpoint(str(tmp_path / "policy"), {})
    ids = list(range(4, 60))
    np.testing.assert_array_equal(
        reference_logprobs(load(tmp_path / "policy"), ids), own.score_sequences([ids])[0]
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").get_vocab() == own.tokenizer.get_vocab()
    with pytest.raises(FileExistsError, match="never overwritten"):
        own.checkpoint(str(tmp_path / "policy"), {})


def test_learning_rate_schedules() -> None:
    def factors(schedule: str, warmup: int) -> list[float]:
        return [
            learning_rate_factor(u, schedule=schedule, num_updates=6, warmup_updates=warmup) for u in range(7)
        ]

    # Warm-up 1/2, 1; then over the 4 updates left: 1, 3/4, 1/2, 1/4, and 0 from update 6 on.
    assert factors("linear", 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    # Half cosine over 6 updates: (1 + cos(pi u / 6)) / 2 = 1, .933, .75, .5, .25, .067, 0
    assert factors("cosine", 0) == pytest.approx([1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0], abs=1e-7)
    assert factors("constant", 0) == [1.0] * 7
