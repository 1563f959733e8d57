"""From trees of turns to samples, batches and padded tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.messages import StopReason
from rl.batch import LossCounts, TrainBatch, make_batch
from rl.layout import pad
from rollout.trajectory import Completion, Trajectory, TrajectoryError, Turn, VersionSpan
from tests.made_trajectories import completion, group, trajectory
from tests.tiny import make_group

FORK = (  # P0 A0, then two continuations of it
    Turn(parent=None, context_ids=(1, 2), completion=completion([10, 11], [-0.1, -0.2], version=3)),
    Turn(parent=0, context_ids=(3,), completion=completion([12], [-0.3], version=4)),
    Turn(parent=0, context_ids=(4, 5), completion=completion([13, 14, 15], [-0.4, -0.5, -0.6], version=5)),
)


def many(num: int) -> list[Trajectory]:
    return [trajectory(f"t{index}", reward=float(index)) for index in range(num)]


def bits(mask: np.ndarray) -> list[int]:
    return mask.astype(int).tolist()


def test_a_plain_episode_trains_what_was_sampled_and_nothing_else():
    turns = (FORK[0], FORK[1])
    (sample,) = make_batch([group(trajectory(turns=turns), index=7)]).samples
    assert sample.token_ids.tolist() == [1, 2, 10, 11, 3, 12]
    assert bits(sample.loss_mask) == [0, 0, 1, 1, 0, 1]
    assert sample.versions.tolist() == [-1, -1, 3, 3, -1, 4]
    np.testing.assert_array_equal(
        sample.rollout_logprobs, np.float32([np.nan, np.nan, -0.1, -0.2, np.nan, -0.3])
    )
    assert (sample.group_id, sample.env, sample.weight) == (7, "calc", 1.0)


def test_a_shared_token_is_trained_in_the_first_leaf_only():
    first, second = make_batch([group(trajectory(turns=FORK))]).samples
    assert first.token_ids.tolist() == [1, 2, 10, 11, 3, 12]
    assert bits(first.loss_mask) == [0, 0, 1, 1, 0, 1]
    assert second.token_ids.tolist() == [1, 2, 10, 11, 4, 5, 13, 14, 15]
    assert bits(second.loss_mask) == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert np.isnan(second.rollout_logprobs[:6]).all()
    assert second.versions.tolist() == [-1, -1, -1, -1, -1, -1, 5, 5, 5]
    # 3 + 3 of 6 sampled tokens
    assert (first.weight, second.weight) == (0.5, 0.5)


def test_every_sampled_token_of_a_deep_tree_is_trained_exactly_once():
    rng = np.random.default_rng(0)
    turns: list[Turn] = []
    next_id = 100
    for index in range(30):
        parent = None if index == 0 or rng.random() < 0.1 else int(rng.integers(index))
        ids = list(range(next_id, next_id + int(rng.integers(0, 4))))
        next_id += len(ids)
        turns.append(Turn(parent=parent, context_ids=(1,), completion=completion(ids)))
    batch = make_batch([group(trajectory(turns=turns))])
    trained = [int(t) for sample in batch.samples for t in sample.token_ids[sample.loss_mask]]
    assert sorted(trained) == list(range(100, next_id))
    assert sum(sample.weight for sample in batch.samples) == pytest.approx(1.0)
    assert batch.counts == LossCounts(num_tokens=next_id - 100, num_sequences=1)


def test_version_spans_inside_a_completion_reach_their_tokens():
    mixed = Completion(
        token_ids=(10, 11, 12),
        logprobs=(-0.1, -0.1, -0.1),
        version_spans=(VersionSpan(version=1, start=0, end=2), VersionSpan(version=2, start=2, end=3)),
        finish_reason="stop",
    )
    turn = Turn(parent=None, context_ids=(1,), completion=mixed)
    (sample,) = make_batch([group(trajectory(turns=[turn]))]).samples
    assert sample.versions.tolist() == [-1, 1, 1, 2]


def test_unusable_trajectories_are_in_no_statistic_and_counted_by_reason():
    failed = TrajectoryError(kind="SandboxDied", message="gone")
    batch = make_batch(
        [
            group(
                trajectory("a", reward=1.0),
                trajectory("b", reward=None),
                trajectory("c", reward=0.5, error=failed),
                trajectory("d", reward=float("nan")),
                trajectory("f", reward=None, error_kind="timeout"),
                trajectory("e", reward=0.0),
            )
        ]
    )
    assert batch.trajectory_ids == ("a", "e")
    assert batch.rewards.tolist() == [1.0, 0.0]
    reasons = ("unscored", "error/SandboxDied", "nonfinite_score", "unscored/timeout")
    assert batch.accounting.dropped == dict.fromkeys(reasons, 2)
    assert batch.accounting.dropped_trajectories == dict.fromkeys(reasons, 1)
    assert (batch.accounting.num_sampled, batch.accounting.num_trained) == (12, 4)


def test_a_scored_trajectory_without_a_sampled_token_counts_in_the_statistics_only():
    batch = make_batch([group(trajectory("a"), trajectory("b", reward=0.0, turns=[]))])
    assert batch.trajectory_ids == ("a", "b")
    assert [sample.trajectory_id for sample in batch.samples] == ["a"]
    assert batch.counts.num_sequences == 1


def test_only_running_out_of_tokens_is_truncation():
    reasons = (
        StopReason.ANSWERED,
        StopReason.MAX_TURN_TOKENS,
        StopReason.MAX_TURNS,
        StopReason.CONTEXT_LIMIT,
    )
    members = [trajectory(str(reason), stop_reason=reason) for reason in reasons]
    assert make_batch([group(*members)]).truncated.tolist() == [False, True, False, True]


def test_minibatches_partition_the_trajectories_in_order():
    parts = make_batch([group(*many(6))]).minibatches(3)
    assert [part.trajectory_ids for part in parts] == [("t0", "t1"), ("t2", "t3"), ("t4", "t5")]
    assert [part.rewards.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]


def test_minibatches_differ_by_one_where_trajectories_were_dropped():
    members = [*many(7), trajectory("x", reward=None)]
    sizes = [len(part.trajectory_ids) for part in make_batch([group(*members)]).minibatches(2)]
    assert sorted(sizes) == [3, 4]


def test_minibatches_of_an_empty_batch_are_empty():
    parts = make_batch([group(trajectory("x", reward=None), trajectory("y", reward=None))]).minibatches(2)
    assert [part.samples for part in parts] == [(), ()]


def test_minibatches_refuse_a_number_that_does_not_divide_what_was_collected():
    with pytest.raises(ValueError, match=r"num_minibatches = 4 does not divide the 6 collected"):
        make_batch([group(*many(6))]).minibatches(4)


def test_a_minibatch_keeps_the_samples_of_a_tree_together_with_their_arrays():
    batch = make_batch([group(trajectory("a"), trajectory("tree", turns=FORK))])
    arrays = tuple(np.full(len(s.token_ids), i, np.float32) for i, s in enumerate(batch.samples))
    first, second = replace(batch, advantages=arrays).minibatches(2)
    assert [s.trajectory_id for s in second.samples] == ["tree", "tree"]
    assert first.advantages is not None
    assert second.advantages is not None
    assert [int(a[0]) for a in first.advantages] == [0]
    assert [int(a[0]) for a in second.advantages] == [1, 2]


def test_what_is_known_of_trajectories_stays_with_them():
    groups = [make_group(i, [([[5], [7]] * (1 + m), float(m)) for m in range(2)]) for i in range(2)]
    batch = replace(make_batch(groups), trackers=np.arange(8.0).reshape(4, 2))
    kept = batch.keep(np.array([False, True, True, False]))
    assert kept.trajectory_ids == ("0-1", "1-0")
    assert kept.task_ids == ("task-0", "task-1")
    assert [len(facts.rewards) for facts in kept.turns] == [2, 1]
    assert {name: values.tolist() for name, values in kept.reward_parts.items()} == {
        "answer": [1.0, 0.0],
        "calls": [4.0, 2.0],
    }
    assert kept.trackers.tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_micro_batches_are_slices_of_the_samples():
    batch = make_batch([group(*many(5))])
    parts = list(batch.micro_batches([[0, 1], [2, 3], [4]]))
    assert [[s.trajectory_id for s in part.samples] for part in parts] == [["t0", "t1"], ["t2", "t3"], ["t4"]]


def test_padding_is_right_and_leaves_every_value_in_its_place():
    batch = make_batch([group(trajectory("tree", turns=FORK))])
    advantages = tuple(np.arange(len(s.token_ids), dtype=np.float32) for s in batch.samples)
    layout = replace(batch, advantages=advantages).padded(pad_id=99)
    assert layout.token_ids.tolist() == [[1, 2, 10, 11, 3, 12, 99, 99, 99], [1, 2, 10, 11, 4, 5, 13, 14, 15]]
    assert layout.attention_mask.int().tolist() == [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9]
    assert layout.loss_mask.int().tolist() == [[0, 0, 1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert layout.position_ids.tolist() == [list(range(9))] * 2
    assert layout.weight.tolist() == [0.5, 0.5]
    assert layout.advantages is not None
    assert layout.advantages.tolist() == [[0, 0, 2, 3, 0, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0, 6, 7, 8]]
    expected = torch.tensor([[0, 0, -0.1, -0.2, 0, -0.3, 0, 0, 0], [0, 0, 0, 0, 0, 0, -0.4, -0.5, -0.6]])
    torch.testing.assert_close(layout.rollout_logprobs, expected)
    assert [row.tolist() for row in layout.unpad(layout.token_ids)] == [
        s.token_ids.tolist() for s in batch.samples
    ]


def test_a_missing_log_prob_of_the_engine_survives_padding():
    turn = Turn(parent=None, context_ids=(1,), completion=completion([10, 11], [float("nan"), -0.2]))
    layout = make_batch([group(trajectory(turns=[turn]))]).padded()
    assert layout.rollout_logprobs.isnan().tolist() == [[False, True, False]]


def test_no_samples_make_an_empty_layout():
    layout = pad([])
    assert layout.token_ids.shape == (0, 0)
    assert layout.loss_mask.dtype == torch.bool


def test_a_wrong_shape_is_refused_by_name():
    batch = make_batch([group(trajectory("a"))])
    with pytest.raises(ValueError, match=r"TrainBatch\.old_logprobs of a has shape \(3,\); expected \(4,\)"):
        replace(batch, old_logprobs=(np.zeros(3, np.float32),))


def test_a_sampled_token_with_nothing_before_it_is_refused():
    turn = Turn(parent=None, context_ids=(), completion=completion([10]))
    with pytest.raises(ValueError, match="give a prompt"):
        make_batch([group(trajectory(turns=[turn]))])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([group(trajectory("a"), trajectory("a"))], "trajectory id 'a' occurs more than once"),
        ([group(trajectory("a"), index=1), group(trajectory("b"), index=1)], "group index 1 occurs more"),
    ],
)
def test_names_that_collide_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        make_batch(groups)


def test_dropped_and_masked_tokens_stay_in_the_accounts():
    batch = make_batch([group(*many(4))])
    left: TrainBatch = batch.drop(np.array([True, False, False, False]), reason="uninformative_group")
    left = left.mask(np.array([False, True, False]))
    assert left.trajectory_ids == ("t1", "t2", "t3")
    assert [sample.trajectory_id for sample in left.samples] == ["t1", "t3"]
    accounting = left.accounting
    assert (accounting.num_sampled, accounting.num_trained, accounting.num_masked) == (8, 4, 2)
    assert accounting.dropped == {"uninformative_group": 2}


def test_trajectory_sums_run_over_trained_tokens_of_all_samples():
    batch = make_batch([group(trajectory("a"), trajectory("tree", turns=FORK))])
    ones = [np.where(s.loss_mask, 1.0, np.nan) for s in batch.samples]
    assert batch.trajectory_sums(ones).tolist() == [2.0, 6.0]
