"""Gradients of a real small model: which tokens they depend on, and that no two algorithms share one."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.logprobs import next_token_targets
from rl.model import hidden_states
from rl.numerics import metric_values
from rl.samples import TrainSample
from tests.rl.test_learner import multi_turn_batch
from tests.tiny import make_tiny_model

ALGORITHMS = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "ppo")
SPOILT = 4
"""The sample whose tokens are changed: P A E A with segments of 6, 4, 6 and 4 tokens."""
TOOL, SAMPLED = 12, 7
"""A token of its tool result, and one that it sampled."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def moved_learner(folder: Path, algorithm: str) -> Learner:
    """A learner whose policy is not its reference, and whose critic, where it has one, expects something."""
    row = get_algorithm(algorithm)
    spec = LearnerSpec(model=str(folder), algorithm=row, learning_rate=0.0, num_updates=9, max_grad_norm=1e9)
    own = Learner(spec)
    own.perturb(0.1, seed=1)
    if own.policy.value_head is not None:
        torch.manual_seed(0)
        torch.nn.init.normal_(own.policy.value_head.weight, std=0.05)
    return own


def weighed(own: Learner, batch: TrainBatch) -> TrainBatch:
    row = own.spec.algorithm
    return row.assign_advantages(own.score(batch, row.needs))


def gradient(own: Learner, batch: TrainBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """The policy's gradient on a weighed batch, after a learning rate of 0, and the update's metrics."""
    own.is_first_update = True  # the same way through the head each time, to compare bits
    metrics = metric_values(own.update(batch))
    return torch.cat([p.grad.flatten() for p in own.model.parameters() if p.grad is not None]), metrics


def test_no_two_algorithms_have_one_gradient_on_one_off_policy_batch(folder: Path) -> None:
    gradients: dict[str, torch.Tensor] = {}
    for name in ALGORITHMS:
        own = moved_learner(folder, name)
        batch = weighed(own, multi_turn_batch(folder))
        own.perturb(0.3, seed=2)  # by now the policy is another than the one that sampled
        gradients[name], metrics = gradient(own, batch)
        clipped = metrics["policy/clip_frac_low"] + metrics["policy/clip_frac_high"]
        assert clipped > 0 or name == "cispo"  # whose cap of 5 no token reaches here
    for one, other in combinations(ALGORITHMS, 2):
        difference = gradients[one] - gradients[other]
        largest = max(gradients[one].norm(), gradients[other].norm())
        assert difference.norm() > 1e-2 * largest, f"{one} and {other}"


def changed(batch: TrainBatch, **arrays: Any) -> TrainBatch:
    """The batch with fields of its sample SPOILT replaced."""
    samples = list(batch.samples)
    samples[SPOILT] = replace(samples[SPOILT], **arrays)
    return replace(batch, samples=tuple(samples))


def other_id(sample: TrainSample, position: int) -> np.ndarray:
    """Its ids with another one at `position`."""
    ids = sample.token_ids.copy()
    ids[position] = 4 + (ids[position] - 3) % 90
    return ids


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce_pp", "ppo"])
def test_log_probs_of_tool_tokens_leave_the_gradient_bit_equal(folder: Path, algorithm: str) -> None:
    own = moved_learner(folder, algorithm)
    batch = weighed(own, multi_turn_batch(folder))
    mask = batch.samples[SPOILT].loss_mask
    assert not mask[TOOL]
    before, _ = gradient(own, batch)
    for value in (0.0, -3.0, np.nan):
        spoilt = changed(
            batch, rollout_logprobs=np.where(mask, batch.samples[SPOILT].rollout_logprobs, np.float32(value))
        )
        for name, arrays in batch.token_arrays.items():
            rows = list(arrays)
            rows[SPOILT] = np.where(mask, rows[SPOILT], np.float32(value))
            spoilt = replace(spoilt, **{name: tuple(rows)})
        assert torch.equal(gradient(own, spoilt)[0], before)


def test_labels_of_tool_tokens_leave_the_gradient_bit_equal(folder: Path) -> None:
    own = moved_learner(folder, "grpo")
    batch = multi_turn_batch(folder)
    # A tool result after the last sampled token is nothing's context: its ids are labels alone.
    tail = 3
    sample = batch.samples[SPOILT]
    ended = {
        "token_ids": np.append(sample.token_ids, [5, 6, 7]),
        "loss_mask": np.append(sample.loss_mask, [False] * tail),
        "rollout_logprobs": np.append(sample.rollout_logprobs, np.full(tail, np.nan, np.float32)),
        "versions": np.append(sample.versions, [-1] * tail),
        "turn_ids": np.append(sample.turn_ids, [-1] * tail),
    }
    gradients = []
    for label in (7, 50):
        ids = ended["token_ids"].copy()
        ids[-1] = label
        scored = weighed(own, changed(batch, **{**ended, "token_ids": ids}))
        gradients.append(gradient(own, scored)[0])
    assert torch.equal(*gradients)
    # In the middle, where an id is a label and the context of what follows: no target comes from it.
    layout = batch.padded()
    labels = torch.where(layout.loss_mask, layout.token_ids, 99)
    hidden = hidden_states(own.model, layout)
    targets = (next_token_targets(hidden, ids, layout.loss_mask)[1] for ids in (layout.token_ids, labels))
    assert torch.equal(*targets)


@pytest.mark.parametrize(("position", "is_sampled"), [(TOOL, False), (SAMPLED, True)])
def test_another_token_in_the_context_or_sampled_changes_the_gradient(
    folder: Path, position: int, is_sampled: bool
) -> None:
    own = moved_learner(folder, "grpo")
    batch = weighed(own, multi_turn_batch(folder))
    sample = batch.samples[SPOILT]
    assert sample.loss_mask[position] == is_sampled
    before, _ = gradient(own, batch)
    after, _ = gradient(own, changed(batch, token_ids=other_id(sample, position)))
    assert (after - before).abs().max() > 1e-3 * before.abs().max()
