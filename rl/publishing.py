"""How a learner's weights leave it: into shared memory or over a device channel, and as sketches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from rl.backends.tensors import local, put_back
from rl.weights import Bystander, Outlet, open_outlet, perturb, sketch_weights, wire_tensors
from rollout.manifest import Manifest
from rollout.weight_sketch import Sketch

if TYPE_CHECKING:
    from rl.backends.base import Backend
    from rl.learner_spec import LearnerSpec
    from rl.model import PolicyModel
    from rl.model_lora import Adapter
    from rollout.weight_transfer_device import DeviceWeights, VLLMWeightSyncClient


class Publishing:
    """The part of a Learner that engines hear of. Of several ranks every one must call each method."""

    spec: LearnerSpec
    policy: PolicyModel
    backend: Backend
    adapter: Adapter | None
    _outlet: Outlet | DeviceWeights | Bystander | None = None
    _kept: list[torch.Tensor] | None = None

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the policy."""
        return self.policy.model

    @property
    def wire_dtype(self) -> torch.dtype:
        """What weights are sent in: the engines' own."""
        return self.spec.precision.engine_dtype

    def _wire_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, as they are sent."""
        return wire_tensors(self.model, self.wire_dtype)

    @property
    def served_adapter(self) -> Adapter | None:
        """The adapter, where engines are given that and not the weights that it is merged into."""
        return self.adapter if self.spec.lora and self.spec.lora.serves_adapter else None

    def connect(self, backend: str, engines: VLLMWeightSyncClient, num_engines: int) -> None:
        """Open one of vLLM's device channels; without one, weights go through shared memory."""
        # vLLM takes seconds to import, and a learner without a device channel never needs it.
        from rollout.weight_transfer_device import DeviceWeights

        if not self.backend.is_main:
            self._outlet = Bystander(self._wire_tensors, has_channel=True)
            return
        tensors = self._wire_tensors
        self._outlet = DeviceWeights(backend, tensors, engines, num_engines)

    def publish(self, version: int) -> Manifest | None:
        """Say what this version is made of; with shared memory every weight lies there when this returns.

        With several ranks all gather, the main one writes, and the others return None.
        """
        if self._outlet is None and not self.backend.is_main:
            adapter = self.served_adapter
            gather = self._wire_tensors if adapter is None else adapter.tensors
            self._outlet = Bystander(gather, has_channel=False)
        if self._outlet is None:
            name = f"{self.spec.run_name}-{os.getpid()}"
            self._outlet = open_outlet(name, self.model, self.wire_dtype, self.served_adapter)
        return self._outlet.write(version)

    def send_weights(self) -> None:
        """Push the weights over the device channel into every engine, between its prepare and its serve."""
        if self._outlet is None or isinstance(self._outlet, Outlet):
            raise ValueError(
                "send_weights without a connect before it: engines load shared memory themselves"
            )
        self._outlet.send()

    def sketch_weights(self, seed: int) -> dict[str, Sketch]:
        """What the engines must show of the published weights."""
        return sketch_weights(self.model, self.wire_dtype, seed, merged=self.served_adapter is None)

    def perturb(self, scale: float, seed: int) -> None:
        """Add noise to all that a sync carries (rl/weights.py: perturb); `restore` takes it back exactly."""
        self._kept = [local(p).clone() for p in self.policy.parameters()]
        perturb(self.model, scale, seed, adapter_only=self.served_adapter is not None)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the last `perturb`, bit for bit."""
        if self._kept is None:
            raise ValueError("restore without a perturb before it")
        for parameter, kept in zip(self.policy.parameters(), self._kept, strict=True):
            put_back(parameter, kept)
        self._kept = None

    def close(self) -> None:
        """Give back what outlives the process."""
        if self._outlet is not None:
            self._outlet.close()
