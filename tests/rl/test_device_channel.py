"""The control of a device channel: who is called, in which order, and what a failure says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rl.algorithms import get_algorithm
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.weight_sync import LearnerSends
from rl.workers import EngineClient
from rollout.engine import EngineError
from rollout.manifest import Manifest
from tests.tiny import make_tiny_model


class Side:
    """A learner or an engine that writes down what it is asked."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    async def connect(self, backend: str, engines: list[Side]) -> None:
        self.calls.append(f"{self.name} connects {len(engines)} by {backend}")

    async def prepare_weights(self, manifest: Manifest) -> None:
        self.calls.append(f"{self.name} prepares {manifest.version}")

    async def send_weights(self) -> None:
        self.calls.append(f"{self.name} sends")

    async def serve_weights(self, version: int) -> int:
        self.calls.append(f"{self.name} serves {version}")
        return version


async def test_nothing_is_sent_before_every_engine_is_ready_and_none_serves_before_all_is_sent():
    calls: list[str] = []
    learner: Any = Side("learner", calls)
    engines: list[Any] = [Side("a", calls), Side("b", calls)]
    channel = LearnerSends("nccl")
    await channel.connect(learner, engines)
    labels = await channel.carry(learner, engines, Manifest(version=5, path="", tensors=()), "")
    assert labels == [5, 5]
    assert calls == [
        "learner connects 2 by nccl",
        "a prepares 5",
        "b prepares 5",
        "learner sends",
        "a serves 5",
        "b serves 5",
    ]


def test_a_learner_without_a_channel_cannot_send(tmp_path: Path):
    folder = make_tiny_model(tmp_path, tied=True)
    row = get_algorithm("reinforce")
    learner = Learner(LearnerSpec(model=str(folder), algorithm=row, learning_rate=0.1, num_updates=1))
    with pytest.raises(ValueError, match="without a connect before it"):
        learner.send_weights()


class EngineActor:
    """The four methods that vLLM's trainer calls, in an actor of its own."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append(init_info)

    async def start_weight_update(self) -> None:
        self.calls.append("start")

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        if "bad" in update_info:
            raise EngineError("engine 1: receiving weights failed: no handle for this GPU")
        self.calls.append(update_info)

    async def finish_weight_update(self) -> None:
        self.calls.append("finish")

    async def told(self) -> list[Any]:
        return self.calls


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Any]]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield [ray.remote(EngineActor).options(num_cpus=0).remote() for _ in range(2)]
    ray.shutdown()


def test_a_call_reaches_every_engine_and_each_has_its_own_rank(engines: list[Any]):
    client = EngineClient(engines, deadline_s=60)
    client.init_weight_transfer_engine({"world_size": 3, "rank_offset": 1})
    client.init_weight_transfer_engine({"packed": True})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update()
    # learner 0, engines 1 and 2; ipc has no ranks
    for rank, calls in enumerate(ray.get([engine.told.remote() for engine in engines]), start=1):
        ranks = {"world_size": 3, "rank_offset": rank}
        assert calls == [ranks, {"packed": True}, "start", {"names": ["a"]}, "finish"]


def test_an_engines_failure_reaches_the_learner_as_it_was_raised(engines: list[Any]):
    with pytest.raises(EngineError, match=r"^engine 1: receiving weights failed: no handle for this GPU$"):
        EngineClient(engines, deadline_s=60).update_weights({"bad": True})
