"""A learner of two ranks behind one client: the numbers of one process, and no wait for a rank that died."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rl.backends.group import CollectiveError
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import metric_values
from rl.pairs import make_pairs
from rl.preference_learner import Preference, PreferenceLearner
from rl.preferences import PreferenceLoss
from rl.ranks import ShardedLearner, joined, root_cause
from rl.splitting import split_batch
from rollout.failures import PeerFailedError
from tests.rl.backends.working import tiny_spec, uneven_batch
from tests.tiny import make_tiny_model

DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


def two_ranks(spec: LearnerSpec, kind: type[Learner] = Learner, **deadlines: float) -> ShardedLearner:
    sharded = replace(spec, backend="fsdp", num_ranks=2)
    return ShardedLearner(sharded, kind=kind, **{"deadline_s": DEADLINE_S, "sync_s": DEADLINE_S} | deadlines)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
async def test_the_client_of_two_ranks_gives_the_numbers_of_one(folder: Path, tmp_path: Path) -> None:
    spec = tiny_spec(folder, "grpo", incidents=str(tmp_path / "incidents"))
    own, client = Learner(spec), two_ranks(spec)
    try:
        facts = await client.start()
        assert facts["num_parameters"] == own.facts()["num_parameters"]
        assert facts["held_parameters"] == pytest.approx(facts["num_parameters"] / 2, rel=0.01)
        batch = uneven_batch(folder)
        scored = await client.score(batch, spec.algorithm.needs)
        expected = own.score(batch, spec.algorithm.needs)
        assert scored.old_logprobs is not None
        assert expected.old_logprobs is not None
        for found, wanted in zip(scored.old_logprobs, expected.old_logprobs, strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-6)
        weighed, needs = spec.algorithm.assign_advantages(expected), spec.algorithm.needs_for(1)
        for minibatch in (weighed, *weighed.minibatches(3)):
            sums = metric_values(await client.update(minibatch))
            assert sums == pytest.approx(metric_values(own.update(minibatch)), rel=2e-4, abs=2e-6)
        ready = [await client.score(batch, needs), own.score(batch, needs)]
        found, wanted = (spec.algorithm.assign_advantages(each) for each in ready)
        sums = metric_values(await client.update(found))
        assert sums == pytest.approx(metric_values(own.update(wanted)), rel=2e-4, abs=2e-6)
        made = (await client.with_old_logprobs(found)).old_logprobs
        assert made is not None
        for array, expected_array in zip(made, own.own_logprobs(), strict=True):
            np.testing.assert_allclose(array, expected_array, atol=2e-6)
        manifest = await client.publish(1)
        assert {tensor.name for tensor in manifest.tensors} == own.sketch_weights(3).keys() - {
            "lm_head.weight"
        }
        assert set(client.take_seconds()) == {"time/score_s", "time/update_s"}
        await client.checkpoint(str(tmp_path / "step_000001"), {"step": 1})
        assert (tmp_path / "step_000001" / "sha256.json").exists()
    finally:
        await client.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("loss_type", [pytest.param("sigmoid", marks=pytest.mark.extra), "kto"])
async def test_pairs_are_learned_on_two_ranks_as_on_one(folder: Path, loss_type: Any) -> None:
    objective = Preference(loss=PreferenceLoss(name="dpo", loss_type=loss_type))
    spec = replace(tiny_spec(folder), algorithm=objective)
    own, client = PreferenceLearner(spec), two_ranks(spec, PreferenceLearner)
    try:
        await client.start()
        await client.score(uneven_batch(folder), objective.needs)
        pairs = make_pairs(own.score(uneven_batch(folder), objective.needs), max_pairs_per_group=1)
        for minibatch in (pairs, *pairs.minibatches(2), pairs.of([])):
            sums = metric_values(await client.update(minibatch))
            assert sums == pytest.approx(metric_values(own.update(minibatch)), rel=2e-4, abs=2e-6)
    finally:
        await client.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
async def test_a_rank_that_dies_is_named_and_nobody_waits_for_it(folder: Path) -> None:
    spec = tiny_spec(folder)
    client = two_ranks(spec)
    try:
        await client.start()
        batch = spec.algorithm.assign_advantages(await client.score(uneven_batch(folder), frozenset()))
        pid = await client.actors[1].__ray_call__.remote(lambda _: os.getpid())
        os.kill(pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(PeerFailedError, match=r"learner rank 1 of 2 \(update\) died"):
            await client.update(batch)
        assert time.monotonic() - started < 30
    finally:
        with pytest.raises(PeerFailedError, match="learner rank"):
            await client.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
async def test_a_rank_that_hangs_is_named(folder: Path) -> None:
    spec = tiny_spec(folder)
    client = two_ranks(spec)
    await client.start()
    pid = await client.actors[0].__ray_call__.remote(lambda _: os.getpid())
    try:
        batch = spec.algorithm.assign_advantages(await client.score(uneven_batch(folder), frozenset()))
        os.kill(pid, signal.SIGSTOP)
        references = [
            actor.update.remote(part)
            for actor, part in zip(client.actors, split_batch(batch, 2), strict=True)
        ]
        started = time.monotonic()
        with pytest.raises(PeerFailedError, match=r"learner rank [01] of 2 .*did not answer"):
            await client._all(references, deadline_s=10, what="update")
        assert time.monotonic() - started < 30
    finally:
        os.kill(pid, signal.SIGKILL)  # a stopped process does not end itself
        with pytest.raises(PeerFailedError):
            await client.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
async def test_the_bug_of_one_rank_is_raised_and_not_what_it_did_to_the_others(folder: Path) -> None:
    spec = tiny_spec(folder)
    client = two_ranks(spec)
    try:
        await client.start()
        unscored = uneven_batch(folder)
        good = spec.algorithm.assign_advantages(await client.score(unscored, frozenset()))
        bad_part = replace(good.split([[3, 4, 5]])[0], advantages=None)
        references = [
            client.actors[0].update.remote(good.split([[0, 1, 2]])[0]),
            client.actors[1].update.remote(bad_part),
        ]
        started = time.monotonic()
        with pytest.raises(Exception, match="advantages") as caught:
            await client._all(references, deadline_s=60, what="update")
        assert not isinstance(caught.value, CollectiveError)
        assert time.monotonic() - started < 30
    finally:
        with pytest.raises(PeerFailedError):
            await client.stop()


def test_the_cause_is_the_failure_that_is_not_a_lost_collective() -> None:
    lost = CollectiveError("learner rank 0 of 2 lost another rank during update: Connection closed by peer")
    died = PeerFailedError("learner rank 1 of 2 (update) died")
    assert root_cause([lost, died]) is died
    alone = root_cause([lost], ["learner rank 1 of 2 (update)"])
    assert isinstance(alone, PeerFailedError)
    assert "rank 0 of 2 lost another rank" in str(alone)
    assert str(alone).endswith("learner rank 1 of 2 (update) did not answer")


def test_the_ranks_arrays_come_back_in_the_order_of_the_samples() -> None:
    arrays = [np.full(1, row, np.float32) for row in range(4)]
    put_together = joined([[1, 2], [], [0, 3]], [(arrays[1], arrays[2]), (), (arrays[0], arrays[3])])
    assert [float(array[0]) for array in put_together] == [0, 1, 2, 3]
