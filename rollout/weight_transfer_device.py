"""The learner's end of vLLM's own weight channels: `ipc` within one GPU, `nccl` between GPUs.

vLLM drives the transfer from the trainer: one `send` starts an update on every engine, moves the bytes and
finishes it. Written against vllm 0.32 `distributed/weight_transfer/{ipc,nccl}_engine.py`, and not yet run on
a GPU: tests/gpu/test_device_sync.py is what has to pass there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
from vllm.utils.network_utils import get_ip, get_open_port

from rollout.manifest import Manifest, TensorSpec

Tensors = Callable[[], Iterable[tuple[str, torch.Tensor]]]
"""A fresh pass over the weights: Hugging Face name and tensor, contiguous, in the engines' dtype."""


class WireSource(WeightSource):
    """The weights of a learner for vLLM: cast one at a time, when it is their turn.

    Names, shapes and dtypes are fixed when it is made; they come from the same pass that sends.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors()]

    def metadata(self) -> list[ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._tensors())


def announce(source: WireSource, version: int) -> Manifest:
    """What a send of `version` will bring. Without a file: path is empty, offsets and CRCs are 0."""
    tensors = tuple(
        TensorSpec(
            name=meta.name,
            dtype=str(meta.dtype).removeprefix("torch."),
            shape=meta.shape,
            offset=0,
            crc32=0,
        )
        for meta in source.metadata()
    )
    return Manifest(version=version, path="", tensors=tensors)


def buffer_bytes(manifest: Manifest) -> int:
    """Bytes of GPU memory that weights are packed into: vLLM's default, but never more than all of them.

    The largest tensor must fit: ipc refuses one that does not.
    """
    largest = max(tensor.num_bytes for tensor in manifest.tensors)
    return min(manifest.num_bytes, max(largest, DEFAULT_PACKED_BUFFER_SIZE_BYTES))


def _ipc(num_buffer_bytes: int, num_engines: int) -> TrainerInitInfo:
    return IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=num_buffer_bytes)


def _nccl(num_buffer_bytes: int, num_engines: int) -> TrainerInitInfo:
    return NCCLTrainerInitInfo(
        rank=0,
        master_address=get_ip(),
        master_port=get_open_port(),
        world_size=1 + num_engines,  # the learner is rank 0, engine k is rank 1 + k
        packed=True,
        packed_buffer_size_bytes=num_buffer_bytes,
    )


INIT_INFOS: dict[str, Callable[[int, int], TrainerInitInfo]] = {"ipc": _ipc, "nccl": _nccl}
"""By vLLM's name of the backend: (bytes of the buffer, number of engines) -> what the trainer opens with."""


class DeviceWeights:
    """A device channel from one learner to its engines; opened when made, so the engines must be up.

    `client` reaches all `num_engines` engines at once (rl/workers.py: EngineClient).
    """

    def __init__(
        self, backend: str, tensors: Tensors, client: VLLMWeightSyncClient, num_engines: int
    ) -> None:
        self._source = WireSource(tensors)
        init_info = INIT_INFOS[backend](buffer_bytes(announce(self._source, 0)), num_engines)
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            init_info, client=client, source=self._source
        )

    def write(self, version: int) -> Manifest:
        """Announce `version`; nothing moves before `send`."""
        return announce(self._source, version)

    def send(self) -> None:
        """Send every weight to every engine; returns when all have loaded them."""
        # vLLM packs on streams of its own, which do not wait for the optimizer's last kernels.
        torch.accelerator.synchronize()
        self._trainer.send_weights()

    def close(self) -> None:
        """Close the channel."""
        self._trainer.shutdown()
