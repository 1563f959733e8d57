"""From a batch's rewards to advantages, as a row's knobs say."""

from dataclasses import replace

import numpy as np
import pytest

from envs.messages import StopReason
from rl.algorithms import get_algorithm
from rl.batch import make_batch
from tests.made_trajectories import group, trajectory


def scored(batch):
    arrays = tuple(np.full(len(s.token_ids), -1.0, np.float32) for s in batch.samples)
    return replace(batch, old_logprobs=arrays, ref_logprobs=tuple(a - 0.5 for a in arrays))


def row_advantages(batch):
    """The advantage of each sample, which must be the same at each trained token and 0 elsewhere."""
    assert batch.advantages is not None
    found = []
    for sample, array in zip(batch.samples, batch.advantages, strict=True):
        assert array.dtype == np.float32
        assert not array[~sample.loss_mask].any()
        (value,) = set(array[sample.loss_mask].tolist())
        found.append(value)
    return found


def test_advantages_are_the_trajectorys_on_each_trained_token():
    batch = make_batch([group(trajectory("a", reward=1.0), trajectory("b", reward=0.0))])
    assert row_advantages(get_algorithm("dr_grpo").assign_advantages(batch)) == [0.5, -0.5]


def test_dapo_leaves_uniform_groups_out_of_every_denominator():
    groups = [
        group(trajectory("a", reward=1.0), trajectory("b", reward=0.0), index=0),
        group(trajectory("c", reward=1.0), trajectory("d", reward=1.0), index=1),
    ]
    batch = get_algorithm("dapo").assign_advantages(make_batch(groups))
    assert [sample.trajectory_id for sample in batch.samples] == ["a", "b"]
    assert (batch.counts.num_tokens, batch.accounting.dropped) == (4, {"uninformative_group": 4})


def test_rloo_takes_the_kl_to_the_reference_off_the_reward():
    # KL of a trajectory: 2 tokens · (−1 − (−1.5)) = 1; the same for both, so it cancels in RLOO
    batch = scored(make_batch([group(trajectory("a", reward=1.0), trajectory("b", reward=0.0))]))
    assert row_advantages(get_algorithm("rloo").assign_advantages(batch)) == [1.0, -1.0]
    first = replace(batch, ref_logprobs=(batch.old_logprobs[0], batch.ref_logprobs[1]))
    # now 0 and 1: rewards 1 and −0.05
    assert row_advantages(get_algorithm("rloo").assign_advantages(first)) == pytest.approx([1.05, -1.05])


@pytest.mark.parametrize(
    ("truncated", "expected"), [("keep", [0.5, -0.5]), ("zero_reward", [0.0, 0.0]), ("mask", [-0.5])]
)
def test_truncated_trajectories_are_kept_masked_or_zeroed_as_the_row_says(truncated, expected):
    cut = trajectory("cut", reward=1.0, stop_reason=StopReason.MAX_TOTAL_TOKENS)
    batch = make_batch([group(cut, trajectory("whole", reward=0.0))])
    batch = get_algorithm("dr_grpo", truncated=truncated).assign_advantages(batch)
    assert row_advantages(batch) == expected
    assert batch.accounting.num_masked == (2 if truncated == "mask" else 0)


def test_the_overlong_penalty_counts_sampled_tokens():
    # 2 sampled tokens of at most 2, buffer 2: penalty −1 for both, so nothing is left between them
    batch = make_batch([group(trajectory("a", reward=1.0), trajectory("b", reward=0.0))])
    row = get_algorithm("reinforce", max_response_length=2, overlong_buffer_len=2)
    assert row_advantages(row.assign_advantages(batch)) == [0.0, -1.0]
