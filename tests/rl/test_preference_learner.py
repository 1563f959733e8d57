"""Learning from pairs: which trajectories are paired, what is compared, and a gradient equal to TRL's own."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.episode import Score
from recipes.preference_config import PreferenceConfig
from rl.batch import make_batch
from rl.learner_spec import LearnerSpec
from rl.metrics import check_names, mean_metrics
from rl.numerics import metric_values
from rl.pairs import PairBatch, make_pairs
from rl.precision import Precision
from rl.preference_learner import Preference, PreferenceLearner, by_row, pair_loss
from rl.preference_rows import PREFERENCES, get_preference
from rollout.trajectory import TrajectoryGroup
from tests.tiny import load, make_group, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def groups(folder: Path, **changes: Any) -> list[TrajectoryGroup]:
    """Two groups of four multi-turn trajectories: prompt, said, tool result, said."""
    model, rng = load(folder), np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return [int(token) for token in rng.integers(4, 100, size=length)]

    def member(reward: float) -> tuple[list[list[int]], float]:
        return [ids(4), ids(int(rng.integers(2, 6))), ids(3), ids(int(rng.integers(1, 5)))], reward

    return [
        make_group(0, [member(r) for r in (0.0, 1.0, 0.5, 1.0)], model=model),
        make_group(1, [member(r) for r in (1.0, 0.0, 0.0, 0.0)], model=model),
    ]


def learner(
    folder: Path, name: str = "dpo", knobs: dict[str, Any] | None = None, **fields: Any
) -> PreferenceLearner:
    objective = Preference(loss=get_preference(name, **knobs or {}))
    spec = LearnerSpec(
        **{"model": str(folder), "algorithm": objective, "learning_rate": 1e-3, "num_updates": 10} | fields
    )
    own = PreferenceLearner(spec)
    own.perturb(0.05, seed=1)  # away from its reference
    return own


def pairs_of(own: PreferenceLearner, folder: Path) -> PairBatch:
    objective: Preference = own.spec.algorithm
    return objective.make_pairs(own.score(make_batch(groups(folder)), objective.needs))


def test_the_best_meets_the_worst_once_each_in_sampled_order(folder):
    batch = make_batch(groups(folder))
    pairs = make_pairs(batch, max_pairs_per_group=4)
    # Group 0 has rewards 0, 1, 0.5, 1: 1 with 0, then 1 with 0.5. Group 1 has 1, 0, 0, 0: one pair, the last
    # of its equal worst; its two others are equal and say nothing.
    assert pairs.pairs == (("0-1", "0-0"), ("0-3", "0-2"), ("1-0", "1-3"))
    assert make_pairs(batch, max_pairs_per_group=1).pairs == (("0-1", "0-0"), ("1-0", "1-3"))
    assert make_pairs(batch, max_pairs_per_group=1, swap=True).pairs == (("0-0", "0-1"), ("1-3", "1-0"))
    assert pairs.batch.accounting.dropped_trajectories == {"unpaired": 2}
    assert pairs.metrics == {"preference/pairs": 3.0, "preference/silent_groups": 0.0}
    equal = replace(batch, rewards=np.ones(8))
    assert make_pairs(equal, max_pairs_per_group=4).pairs == ()
    assert make_pairs(equal, max_pairs_per_group=4).metrics["preference/silent_groups"] == 1.0


def test_a_row_is_a_whole_trajectory_with_what_was_sampled_in_every_turn(folder):
    own = learner(folder)
    pairs = pairs_of(own, folder)
    mask = by_row(pairs.batch.padded().loss_mask, pairs)
    for row, name in enumerate([pair[side] for side in (0, 1) for pair in pairs.pairs]):
        (sample,) = (s for s in pairs.batch.samples if s.trajectory_id == name)
        assert mask[row, : len(sample.loss_mask)].tolist() == sample.loss_mask.tolist()
        assert not mask[row, len(sample.loss_mask) :].any()
    forked = pairs.batch.samples[0]
    split = replace(pairs.batch, samples=(forked, *pairs.batch.samples), ref_logprobs=None, old_logprobs=None)
    rows = by_row(split.padded().loss_mask, replace(pairs, batch=split))
    assert sorted(rows.sum(1).tolist())[-1] >= 2 * int(forked.loss_mask.sum())  # two samples, one row


def gradient_of(own: PreferenceLearner, pairs: PairBatch) -> dict[str, torch.Tensor]:
    own.policy.zero_grad()
    layout = pairs.batch.padded()
    objective: Preference = own.spec.algorithm
    loss, _ = pair_loss(
        objective.loss, own.evaluate(layout).logprobs, layout, pairs, num_pairs=len(pairs.pairs)
    )
    loss.backward()
    return {name: p.grad.clone() for name, p in own.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust"])
def test_the_gradient_is_that_of_trls_own_loss(folder, tmp_path, loss_type):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    name = {"sigmoid": "dpo"}.get(loss_type, loss_type)
    own = learner(folder, name)
    pairs = pairs_of(own, folder)
    ours = gradient_of(own, pairs)

    def row(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    loss = own.spec.algorithm.loss
    trainer = DPOTrainer(
        model=load(folder),
        ref_model=load(folder),
        args=DPOConfig(
            output_dir=str(tmp_path),
            loss_type=[loss_type],
            beta=loss.beta,
            label_smoothing=loss.label_smoothing,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        processing_class=own.tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "1", "chosen": "2", "rejected": "3"}]),
    )
    trainer.model.load_state_dict(own.model.state_dict())
    layout = pairs.batch.padded()
    rows, _, _ = pairs.places
    order = np.argsort(rows)  # TRL's batch: all chosen, then all rejected
    inputs = {
        "input_ids": layout.token_ids[order],
        "attention_mask": layout.attention_mask[order].long(),
        "completion_mask": layout.loss_mask[order].long(),
    }
    trainer.model.eval()
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs, return_outputs=False).backward()
    theirs = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_an_update_does_not_depend_on_its_micro_batches(folder, name):
    found = []
    for size in (64, 2):
        own = learner(folder, name, micro_batch_size=size)
        pairs = pairs_of(own, folder)
        values = metric_values(own.update(pairs))
        found.append(values)
        assert values["preference/nonfinite_frac"] == 0.0
        assert values["policy/first_ratio_error"] < 1e-5
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", sorted(PREFERENCES))
def test_every_loss_comes_to_prefer_the_chosen_and_swapped_the_rejected(folder, name):
    margins = {}
    for swap in (False, True):
        own = learner(folder, name, num_updates=20)
        objective = replace(own.spec.algorithm, swap_pairs=swap)
        batch = own.score(make_batch(groups(folder)), objective.needs)
        values = [metric_values(own.update(objective.make_pairs(batch))) for _ in range(12)]
        sign = -1.0 if swap else 1.0  # of the better less the worse
        margins[swap] = sign * (
            (values[-1]["preference/chosen_logp"] - values[-1]["preference/rejected_logp"])
            - (values[0]["preference/chosen_logp"] - values[0]["preference/rejected_logp"])
        )
    assert margins[False] > 0.5
    assert margins[True] < -0.5


@pytest.mark.parametrize("micro_batch_size", [64, 2])
def test_kto_by_hand_over_a_whole_update(folder, micro_batch_size):
    knobs = {"beta": 2.0, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    own = learner(folder, "kto", knobs, micro_batch_size=micro_batch_size)
    pairs = pairs_of(own, folder)
    # The reference is put where h = Σ (log π - log π_ref) is, pair by pair, (chosen, rejected):
    h = [(1.2, 0.4), (0.6, -0.2), (0.3, -0.5)]
    wanted = dict(zip((name for pair in pairs.pairs for name in pair), np.ravel(h), strict=True))
    ref = tuple(
        (old - wanted[sample.trajectory_id] / sample.loss_mask.sum()).astype(np.float32)
        for sample, old in zip(pairs.batch.samples, pairs.batch.old_logprobs or (), strict=True)
    )
    values = metric_values(own.update(replace(pairs, batch=replace(pairs.batch, ref_logprobs=ref))))
    # z0 = (1.6 + 0.4 - 0.2) / 6 = 0.3. Micro-batches of one pair alone would have 0.8, 0.2 and 0 (of -0.1).
    # β (z0 - h) of the chosen: -1.8, -0.6, 0. β (h - z0) of the rejected: 0.2, -1.0, -1.6.
    # The loss weighs σ of them by 1.5 and 0.5, over all 6 rows.
    chosen, rejected = (sum(1 / (1 + exp(-x)) for x in xs) for xs in ((-1.8, -0.6, 0.0), (0.2, -1.0, -1.6)))
    assert values["preference/loss"] == pytest.approx((1.5 * chosen + 0.5 * rejected) / 6, rel=1e-5)
    assert values["preference/chosen_reward"] == pytest.approx(2 * (1.2 + 0.6 + 0.3) / 3, rel=1e-5)
    assert values["preference/rejected_reward"] == pytest.approx(2 * (0.4 - 0.2 - 0.5) / 3, rel=1e-4)


@pytest.mark.parametrize("name", ["dpo", "kto", "simpo"])
@pytest.mark.parametrize("model", ["float32", "float16"])
def test_a_step_without_pairs_moves_the_schedule_and_nothing_else(folder, name, model):
    own = learner(folder, name, precision=Precision(model=model), warmup_updates=5)
    objective: Preference = own.spec.algorithm
    own.update(pairs_of(own, folder))  # Adam has moments, which without a gradient must not move a weight
    before = [x.detach().clone() for x in moved_by_an_update(own)]
    equal = [
        replace(group, trajectories=tuple(replace(t, score=Score(value=1.0)) for t in group.trajectories))
        for group in groups(folder)
    ]
    pairs = objective.make_pairs(own.score(make_batch(equal), objective.needs))
    metrics = mean_metrics([own.update(minibatch) for minibatch in pairs.minibatches(2)]) | pairs.metrics
    assert all(torch.equal(a, b) for a, b in zip(before, moved_by_an_update(own), strict=True))
    check_names(metrics)
    assert metrics == pytest.approx(
        {
            "preference/pairs": 0.0,
            "preference/silent_groups": 1.0,
            "optim/lr": 1e-3 * (2 / 5 + 3 / 5) / 2,  # the second and the third of five updates of warm-up
            "optim/skipped_updates": 0.0,
            "optim/grad_norm": 0.0,
        }
    )
    again = metric_values(own.update(pairs_of(own, folder)))  # and the run goes on
    assert again["optim/lr"] == pytest.approx(1e-3 * 4 / 5)
    assert not all(torch.equal(a, b) for a, b in zip(before, moved_by_an_update(own), strict=True))


def moved_by_an_update(own: PreferenceLearner) -> list[torch.Tensor]:
    """Weights, Adam's moments and its own counts, and the loss scale."""
    moments = [x for state in own.optimizer.adamw.state.values() for x in state.values()]
    return [*own.policy.parameters(), *moments, torch.tensor(own.optimizer.scaler.get_scale())]


def test_a_minibatch_without_pairs_leaves_the_ratio_check_to_the_next(folder):
    own = learner(folder)
    pairs = pairs_of(own, folder)
    assert "policy/first_ratio_error" not in own.update(pairs.of([]))
    assert metric_values(own.update(pairs))["policy/first_ratio_error"] < 1e-5
    assert "policy/first_ratio_error" not in own.update(pairs)


def test_labels_of_tool_tokens_are_in_no_gradient(folder):
    own = learner(folder)
    pairs = pairs_of(own, folder)
    before = gradient_of(own, pairs)
    garbage = tuple(
        np.where(sample.loss_mask, ref, np.float32(np.nan))
        for sample, ref in zip(pairs.batch.samples, pairs.batch.ref_logprobs or (), strict=True)
    )
    after = gradient_of(own, replace(pairs, batch=replace(pairs.batch, ref_logprobs=garbage)))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_setting_without_effect_is_refused_with_what_to_do():
    for changes, message in (
        ({"clip_ratio_low": 0.1}, "clip_ratio_low: knobs of policy-gradient rows"),
        ({"orpo_lambda": 0.1}, "orpo_lambda = 0.1 has no effect in preference loss 'dpo'"),
        ({"algorithm": "simpo", "gamma_simpo": 1.0, "gamma_beta_ratio": 0.5}, "exactly one of gamma"),
        ({"algorithm": "dp"}, "did you mean 'dpo'"),
        ({"group_size": 1}, "a pair is two trajectories"),
        ({"micro_batch_tokens": 4096}, "has no effect on pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            PreferenceConfig(**changes).make_algorithm()
