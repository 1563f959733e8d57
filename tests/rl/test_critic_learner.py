"""PPO's critic inside the learner: a head or a model of its own, trained, clipped apart, never published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import metric_values
from tests.rl.test_learner import multi_turn_batch, weights
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def ppo_learner(folder: Path, critic: str = "head", **fields: Any) -> Learner:
    row = get_algorithm("ppo", critic=critic)
    spec = {"learning_rate": 1e-3, "critic_lr": 1e-2, "num_updates": 1000}
    return Learner(LearnerSpec(**({"model": str(folder), "algorithm": row} | spec | fields)))


def weighed(own: Learner, folder: Path) -> TrainBatch:
    row = own.spec.algorithm
    return row.assign_advantages(own.score(multi_turn_batch(folder), row.needs))


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_a_critic_begins_at_zero_and_learns_its_returns(folder: Path, critic: str) -> None:
    own = ppo_learner(folder, critic)
    batch = weighed(own, folder)
    assert batch.old_values is not None
    assert not np.concatenate(batch.old_values).any()
    losses = [metric_values(own.update(batch))["critic/value_loss"] for _ in range(25)]
    rescored = metric_values(own.update(weighed(own, folder)))
    assert losses[-1] < 0.7 * losses[0]
    assert rescored["critic/explained_variance"] > 0.3


def test_values_are_of_the_state_before_the_token(folder: Path) -> None:
    own = ppo_learner(folder)
    torch.nn.init.normal_(own.policy.value_head.weight)
    batch = own.score(multi_turn_batch(folder), own.spec.algorithm.needs)
    assert batch.old_values is not None
    for sample, values in zip(batch.samples, batch.old_values, strict=True):
        # The value of the last token's state cannot depend on that token.
        changed = sample.token_ids.copy()
        changed[-1] = 4 + (changed[-1] - 3) % 90
        other = own.score(
            replace(
                batch,
                samples=(replace(sample, token_ids=changed),),
                old_logprobs=None,
                ref_logprobs=None,
                old_values=None,
            ),
            own.spec.algorithm.needs,
        )
        assert other.old_values is not None
        np.testing.assert_allclose(other.old_values[0], values, rtol=1e-5, atol=1e-5)
        assert values[sample.loss_mask].any()
        assert not values[~sample.loss_mask].any()


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_micro_batches_change_no_weight(folder: Path, critic: str) -> None:
    trained = []
    for size in (1, 6):
        own = ppo_learner(folder, critic, micro_batch_size=size)
        own.update(weighed(own, folder))
        trained.append(torch.cat([weights(own), *(p.flatten() for p in own._critic_parameters())]))
    # AdamW's first step is lr * g / (|g| + eps): where g is of the size of eps, its rounding shows, and how
    # much depends on the CPU. A wrong denominator would move every weight by about the learning rate, 1e-3.
    apart = (trained[0] - trained[1]).abs()
    assert apart.max() < 1e-4
    assert (apart > 1e-6).float().mean() < 1e-3


def test_a_frozen_critic_changes_what_ppo_learns(folder: Path) -> None:
    learned = []
    for rate in (0.0, 1e-1):
        own = ppo_learner(folder, "separate", critic_lr=rate)
        for _ in range(3):
            own.update(weighed(own, folder))
        learned.append(weights(own))
    assert (learned[0] - learned[1]).abs().max() > 1e-4


def test_engines_never_see_a_value_head(folder: Path) -> None:
    with_critic, without = ppo_learner(folder), ppo_learner(folder)
    without.policy.value_head = None
    assert with_critic.facts() == without.facts()
    try:
        names = {tensor.name for tensor in with_critic.publish(1).tensors}
    finally:
        with_critic.close()
    assert not any("value" in name for name in names)


def test_the_critics_gradient_never_shrinks_the_policys_step(folder: Path) -> None:
    own = ppo_learner(folder, "separate")
    metrics = metric_values(own.update(weighed(own, folder)))
    assert metrics["optim/critic_grad_norm"] > 0
    alone = ppo_learner(folder, "separate")
    alone.spec = replace(alone.spec, algorithm=replace(alone.spec.algorithm, vf_coef=1000.0))
    loud = metric_values(alone.update(weighed(alone, folder)))
    assert loud["optim/critic_grad_norm"] > 100 * metrics["optim/critic_grad_norm"]
    torch.testing.assert_close(weights(own), weights(alone), rtol=0, atol=1e-7)
