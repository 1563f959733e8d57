"""Weight syncs on GPUs, through Ray, real vLLM and the placement of a run.

`ipc` and `nccl` were written without a GPU at hand: until these tests have passed on one, they are unproven.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
import ray
import torch

from recipes.placement import CHANNELS, make_engine_specs, make_learner_spec, start_ray
from rl.config import Config
from rl.defaults import resolve
from rl.gates import measure_gap
from rl.machine import Machine
from rl.weight_sync import WeightSync
from rl.workers import RemoteLearner
from rollout.collector import Collector, CollectorSpec
from rollout.limits import Limits
from rollout.task_stream import TaskStream
from rollout.workers import RemoteRollouts, RolloutSpec
from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

NUM_GPUS = torch.cuda.device_count()
NEEDED = {"shm": 1, "ipc": 1, "nccl": 2}


@dataclass
class Setup:
    """Learner and engine of one run on its devices."""

    config: Config
    learner: RemoteLearner
    collector: Collector[RemoteRollouts]
    sync: WeightSync


def engines_of(config: Config) -> list[RemoteRollouts]:
    limits = Limits(max_turns=3, max_turn_tokens=32, max_total_tokens=192, max_tool_calls=4, max_wall_s=60.0)
    return [
        RemoteRollouts(
            RolloutSpec(engine=spec, env=config.env, reward="", limits=limits, run_seed=0),
            start_s=600,
            group_s=120,
            sync_s=120,
        )
        for spec in make_engine_specs(config)
    ]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[(backend, tied) for backend in NEEDED for tied in (True, False)],
    ids=lambda param: f"{param[0]}-{'tied' if param[1] else 'untied'}",
)
async def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Setup]:
    backend, tied = request.param
    if NEEDED[backend] > NUM_GPUS:
        pytest.skip(f"{backend} needs {NEEDED[backend]} NVIDIA GPUs, torch sees {NUM_GPUS}")
    model = make_tiny_model(tmp_path_factory.mktemp("model"), tied=tied)
    config = resolve(Config(model=str(model), sync_backend=backend, canary_tokens=32), Machine.here())
    algorithm = config.make_algorithm()
    start_ray(config)
    learner = RemoteLearner(
        make_learner_spec(config, algorithm, run_name=f"test-{backend}"), deadline_s=300, sync_s=120
    )
    engines = engines_of(config)
    try:
        await learner.start()
        for engine in engines:
            await engine.start()
        sync = WeightSync(
            canaries=[[3 + (7 * i + 5 * j) % 90 for j in range(32)] for i in range(4)],
            gap_limit=config.gap_limit,
            engine_dtype=config.engine_dtype,
            transfer=CHANNELS[backend].transfer,
        )
        collector = Collector(
            TaskStream(env="calc", level=1, run_seed=0), engines, CollectorSpec(group_size=4)
        )
        await sync.connect(learner, collector)
        yield Setup(config, learner, collector, sync)
    finally:
        for process in (learner, *engines):
            await process.stop()
        ray.shutdown()


async def test_three_updates_are_served_and_proven(setup: Setup):
    """`publish` raises unless sketches and canaries prove every tensor; the gap is on real samples."""
    gap = await measure_gap(setup.learner, setup.collector, num_groups=2)
    assert gap.max <= setup.config.gap_limit
    for update in range(1, 4):
        await setup.learner.perturb(0.3, seed=update)
        metrics = await setup.sync.publish(setup.learner, setup.collector)
        assert metrics["sync/canary_gap_max"] <= setup.config.gap_limit
        assert setup.sync.version == update
        gap = await measure_gap(setup.learner, setup.collector, num_groups=2)
        assert gap.max <= setup.config.gap_limit


async def test_a_restored_policy_is_served_again(setup: Setup):
    await setup.learner.perturb(0.3, seed=9)
    await setup.sync.publish(setup.learner, setup.collector)
    await setup.learner.restore()
    await setup.sync.publish(setup.learner, setup.collector)
