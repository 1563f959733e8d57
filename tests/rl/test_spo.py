"""SPO through the step: a prompt is compared with its own past, which is read before it is added to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rl.advantages import spo
from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.spo import PromptBaselines
from tests.tiny import make_group


def batch_of(*rewards: float) -> TrainBatch:
    """One trajectory each of the tasks task-0, task-1, ..."""
    return make_batch([make_group(index, [([[5], [7, 7]], reward)]) for index, reward in enumerate(rewards)])


def first_tokens(batch: TrainBatch) -> list[float]:
    assert batch.advantages is not None
    return [
        float(array[sample.loss_mask][0])
        for sample, array in zip(batch.samples, batch.advantages, strict=True)
    ]


def test_a_prompt_is_compared_with_what_was_known_before_this_step() -> None:
    running = get_algorithm("spo").start()
    assert isinstance(running, PromptBaselines)
    # 8 pseudo-counts at one half: every baseline is .5
    four = np.full(4, 4.0)
    rewards = np.array([1.0, 1.0, 0.0, 1.0])
    first = running.assign_advantages(batch_of(*rewards))
    np.testing.assert_allclose(first_tokens(first), spo(rewards, four, four), rtol=1e-6)
    # The policy has not moved: ρ = .96, so α = .96 · 4 + 1 = 4.84 and β = .96 · 4 = 3.84 after a success.
    assert running.trackers["task-0"].value == pytest.approx(4.84 / 8.68)
    running = running.after_step({"policy/approx_kl_k3": 0.06})
    second = running.assign_advantages(batch_of(*rewards))
    alpha, beta = np.array([4.84, 4.84, 3.84, 4.84]), np.array([3.84, 3.84, 4.84, 3.84])
    np.testing.assert_allclose(first_tokens(second), spo(rewards, alpha, beta), rtol=1e-6)
    # Now it has moved by .06 nats, 2^-1 is below the least ρ: α = .875 · 4.84 + 1
    assert running.trackers["task-0"].alpha == pytest.approx(0.875 * 4.84 + 1)


def test_what_is_known_of_a_prompt_fades_with_the_way_since_it_was_seen() -> None:
    running = get_algorithm("spo").start()
    running.assign_advantages(batch_of(1.0, 0.0))
    running = running.after_step({"policy/approx_kl_k3": 0.004})
    running.assign_advantages(batch_of(1.0))  # task-0 alone
    running = running.after_step({"policy/approx_kl_k3": 0.004})
    running.assign_advantages(batch_of(1.0, 0.0))
    # task-1 was seen .008 nats ago: ρ = 2^(-.008 / .06) = .9117; task-0 .004 ago: .9548
    rho = 2 ** (-0.008 / 0.06)
    assert running.trackers["task-1"].beta == pytest.approx(rho * (0.96 * 4 + 1) + 1)
    rho = 2 ** (-0.004 / 0.06)
    assert running.trackers["task-0"].alpha == pytest.approx(rho * (rho * (0.96 * 4 + 1) + 1) + 1)


def test_no_step_is_made_with_a_past_that_is_not_there() -> None:
    row = get_algorithm("spo")
    with pytest.raises(ValueError, match=r"step with spo\.start"):
        row.assign_advantages(batch_of(1.0, 0.0))
    with pytest.raises(ValueError, match="lacks task_ids"):
        row.start().assign_advantages(replace(batch_of(1.0, 0.0), task_ids=None))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        row.start().assign_advantages(batch_of(2.0, 0.0))
    assert get_algorithm("grpo").start() == get_algorithm("grpo")
