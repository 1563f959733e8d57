"""Spoiled members change nothing for the others, and every token and trajectory is accounted for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.episode import Score
from envs.sandbox.base import SandboxError
from rl.accounting import accounts_problem
from rl.algorithms import ALGORITHMS, get_algorithm
from rl.batch import make_batch
from rl.gates import GateError, StepGates
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.metrics import batch_metrics, check_names, world_metrics
from rollout.collector import Collector, CollectorSpec
from rollout.task_stream import TaskStream
from tests.failing_worlds import GoneForGoodError, play
from tests.made_trajectories import group, trajectory
from tests.tiny import make_tiny_model

DIED = ("step", SandboxError("it died"))
GONE = ("step", GoneForGoodError("gone"))
COMPARING = ("grpo", "dr_grpo", "default", "rloo", "gspo", "cispo", "maxrl", "reinforce_pp_baseline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def without(spoiled, *members):
    kept = tuple(t for number, t in enumerate(spoiled.trajectories) if number not in members)
    return replace(spoiled, trajectories=kept)


def gradient(folder: Path, name: str, groups) -> torch.Tensor:
    row = get_algorithm(name)
    spec = LearnerSpec(model=str(folder), algorithm=row, learning_rate=0.0, num_updates=9, max_grad_norm=1e9)
    learner = Learner(spec)
    batch = row.assign_advantages(learner.score(make_batch(groups), row.needs))
    learner.update(batch)
    return torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", COMPARING)
async def test_the_gradient_of_a_group_with_a_spoiled_member_is_that_of_the_group_without_it(folder, name):
    spoiled = await play(None, None, GONE, None, group_size=4)  # member 1 answers wrong
    assert [t.score.value for t in spoiled.trajectories] == [1.0, 0.0, None, 1.0]
    found = gradient(folder, name, [spoiled])
    assert found.abs().max() > 0
    assert torch.equal(found, gradient(folder, name, [without(spoiled, 2)]))


async def test_a_group_below_min_group_has_no_weight_and_is_counted():
    small = await play(None, GONE, GONE, GONE, group_size=4, index=1)
    whole = await play(group_size=4, index=2)
    batch = get_algorithm("dr_grpo").assign_advantages(make_batch([small, whole]))
    assert set(batch.group_ids.tolist()) == {2}
    tokens = small.trajectories[0].num_sampled_tokens
    assert batch.accounting.dropped["small_group"] == tokens
    assert batch.accounting.dropped_trajectories == {"error/GoneForGoodError": 3, "small_group": 1}
    alone = get_algorithm("dr_grpo", min_group=1).assign_advantages(make_batch([small, whole]))
    assert set(alone.group_ids.tolist()) == {1, 2}
    three = get_algorithm("dr_grpo", min_group=3).assign_advantages(make_batch([small, without(whole, 0, 2)]))
    assert three.accounting.dropped_trajectories["small_group"] == 3


def test_rows_that_compare_no_members_need_no_group_and_have_no_such_knob():
    alone = make_batch([group(trajectory("a", reward=1.0))])
    for name in ("reinforce", "reinforce_pp", "ppo", "spo", "opd", "jsd"):
        assert get_algorithm(name).least_group == 1, name
        with pytest.raises(ValueError, match="min_group"):
            get_algorithm(name, min_group=2)
    assert get_algorithm("reinforce").assign_advantages(alone).trajectory_ids == ("a",)
    needing = {name for name, row in ALGORITHMS.items() if row.least_group == 2}
    assert needing >= {*COMPARING, "gdpo", "mt_grpo", "gigpo", "roc", "dapo"}


class Runner:
    """Real episodes: of every second task the world spoils members, and of every third too few are left."""

    async def run_group(self, request):
        failures = [None, None, DIED, GONE] if request.index % 2 else [None, DIED]
        if request.index % 3 == 0:
            failures = [None, GONE, GONE, GONE]
        return await play(*failures, group_size=4, index=request.index)


@pytest.mark.parametrize("name", ["grpo", "dapo", "roc", "default", "reinforce"])
async def test_everything_sampled_is_trained_masked_or_dropped_after_every_filter(name):
    row = get_algorithm(name, **({"truncated": "mask"} if name == "grpo" else {}))
    spec = CollectorSpec(group_size=4, dynamic_sampling=row.dynamic_sampling, min_group=row.least_group)
    collector = Collector(TaskStream(env="calc", level=1, run_seed=0), [Runner()], spec)
    groups = await collector.next_groups(4)
    batch = make_batch(groups)
    arrays = tuple(np.full(len(s.token_ids), -1.0, np.float32) for s in batch.samples)
    batch = row.assign_advantages(replace(batch, old_logprobs=arrays, ref_logprobs=arrays))
    metrics = batch_metrics(batch) | world_metrics(collector.sampled_groups, groups)
    metrics["rollout/dropped_tokens"] = float(collector.num_dropped_tokens)
    check_names(metrics)
    assert accounts_problem(metrics) == ""
    assert metrics["dropped/error/GoneForGoodError"] >= 1
    assert metrics["retry/SandboxError"] >= 1
    assert (metrics["rollout/dropped_trajectories"] > 0) == (name == "dapo")
    StepGates(gap_limit=1.0).check(1, metrics)
    for lost in (name for name in metrics if name.startswith(("dropped", "rollout/dropped_t"))):
        if metrics[lost]:
            with pytest.raises(GateError, match=r"step 1: \d+ (tokens|trajectories) were sampled, and "):
                StepGates(gap_limit=1.0).check(1, metrics | {lost: metrics[lost] - 1})


async def test_a_reward_that_failed_is_dropped_by_kind_and_its_siblings_keep_their_baseline():
    scored = await play(group_size=3)
    late = replace(scored.trajectories[2], score=Score(value=None, error="late", error_kind="timeout"))
    unscored = replace(scored, trajectories=(*scored.trajectories[:2], late))
    row = get_algorithm("dr_grpo")
    batch = row.assign_advantages(make_batch([unscored]))
    assert batch.accounting.dropped_trajectories == {"unscored/timeout": 1}
    alone = row.assign_advantages(make_batch([without(unscored, 2)]))
    for mine, theirs in zip(batch.advantages, alone.advantages, strict=True):
        assert mine.tolist() == theirs.tolist()
    assert world_metrics([unscored], [unscored])["unscored/timeout"] == 1.0
