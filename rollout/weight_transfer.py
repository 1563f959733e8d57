"""Weight transfer over shared memory on one host, and the proof of what is served afterwards.

This module is imported in vLLM's worker process (it is named as `worker_extension_cls`), where it registers
the backend `whetstone_shm` with vLLM's own weight-transfer registry. It must import neither ray nor rl.

A sync is five calls to the worker: check_weight_manifest (ours; nothing is touched yet), start_weight_update,
update_weights, finish_weight_update (vLLM's), sketch_served_weights (ours). With vLLM's own backends (ipc,
nccl) the learner makes the middle three (rollout/weight_transfer_device.py), and retie_head follows them.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.weight_transfer import WeightTransferConfig  # noqa: F401  (fails loudly when vLLM moves it)
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rollout import sabotage
from rollout.manifest import Manifest, TensorSpec, WeightSyncError, check_manifest
from rollout.served import expected_shapes, retie_head, served_sketches
from rollout.served_experts import repack_experts

BACKEND = "whetstone_shm"


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the manifest of each update names its file."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One update: a Manifest as plain types, and the drill to perform (empty in every real run)."""

    manifest: dict[str, Any]
    drill: str = ""


def open_tensors(manifest: Manifest) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
    """The manifest's tensors, as views of the shared file (read-only by convention, valid while iterating).

    Raises:
        WeightSyncError: the file is shorter than the manifest says.
    """
    with open(manifest.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        for spec in manifest.tensors:
            if spec.offset + spec.num_bytes > len(view):
                raise WeightSyncError(
                    f"{spec.name} is short: it ends at byte {spec.offset + spec.num_bytes}, "
                    f"{manifest.path} has {len(view)}"
                )
            flat = torch.frombuffer(
                bytearray(view[spec.offset : spec.offset + spec.num_bytes]), dtype=getattr(torch, spec.dtype)
            )
            yield spec, flat.reshape(spec.shape)


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """The receiving side: loads a manifest's tensors out of a file in shared memory."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to rendezvous with: sender and receiver share a host."""

    def start_weight_update(self) -> None:
        # The CPU backend packs linear weights and frees the originals: without this bracket a plain load dies
        # on a size assertion.
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Load every tensor of the manifest, counting them in.

        Raises:
            WeightSyncError: the model took another number of tensors than the manifest holds.
        """
        manifest = Manifest.from_dict(update_info.manifest)
        taken = 0

        def counted() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal taken
            for spec, tensor in open_tensors(manifest):
                taken += 1
                yield spec.name, tensor

        self._drill = update_info.drill
        sabotage.load(update_info.drill, self.model, counted())
        if taken != len(manifest.tensors):
            raise WeightSyncError(
                f"the engine took {taken} of {len(manifest.tensors)} tensors of version {manifest.version}"
            )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_experts(self.model)
        if self._drill != "no_retie":
            retie_head(self.model)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryEngine)


class WorkerExtension:
    """Methods that vLLM mixes into its worker; reached through `collective_rpc` by name."""

    model_runner: Any
    vllm_config: VllmConfig

    def _model(self) -> nn.Module:
        return self.model_runner.get_model()

    def check_weight_manifest(self, manifest: dict[str, Any]) -> None:
        """Refuse before anything is touched: after start_weight_update the old weights are gone.

        Raises:
            WeightSyncError: names, shapes or (for shared memory) bytes are not what the manifest says.
        """
        checked = Manifest.from_dict(manifest)
        check_manifest(checked, expected_shapes(self._model()))
        if checked.path:
            torn = [spec.name for spec, t in open_tensors(checked) if _crc32(t) != spec.crc32]
            if torn:
                raise WeightSyncError(
                    f"bytes in {checked.path} do not match the manifest's CRC: {', '.join(torn)}"
                )

    def retie_head(self) -> None:
        """After an update by a backend of vLLM's: what SharedMemoryEngine does at its own end."""
        with set_current_vllm_config(self.vllm_config):
            retie_head(self._model())

    def sketch_served_weights(self, seed: int) -> dict[str, dict[str, Any]]:
        """Sketches of what the layers serve, by Hugging Face name, as plain types."""
        return {
            name: {"columns": s.columns.tobytes(), "product": s.product.tobytes(), "rows": len(s.product)}
            for name, s in served_sketches(self._model(), seed).items()
        }


def _crc32(tensor: torch.Tensor) -> int:
    return zlib.crc32(memoryview(tensor.contiguous().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
