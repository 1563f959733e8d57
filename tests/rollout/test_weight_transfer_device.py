"""What the learner's end of a device channel sends, as far as it can be seen without a GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from rl.weights import perturb, wire_tensors
from rollout.engine import EngineSpec, device_arguments, engine_environment
from rollout.manifest import Manifest, TensorSpec
from rollout.weight_transfer_device import INIT_INFOS, WireSource, announce, buffer_bytes
from tests.tiny import load, make_tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_goes_once_by_its_hugging_face_name_in_the_engines_dtype(tmp_path: Path, tied: bool):
    model = load(make_tiny_model(tmp_path, tied=tied))
    source = WireSource(partial(wire_tensors, model, torch.bfloat16))
    sent = dict(NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))  # vLLM's own check
    # state_dict lists a tied head under both names; vLLM ties it itself.
    expected = [name for name in model.state_dict() if not (tied and name == "lm_head.weight")]
    assert list(sent) == expected
    assert ("lm_head.weight" in sent) is not tied
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, model.state_dict()[name].bfloat16(), rtol=0, atol=0)


def test_every_send_reads_the_weights_as_they_are_then(tmp_path: Path):
    model = load(make_tiny_model(tmp_path, tied=True))
    source = WireSource(partial(wire_tensors, model, torch.float32))
    before = {name: tensor.clone() for name, tensor in source}
    perturb(model, 0.3, seed=1)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in source)


def test_what_is_announced_is_what_is_sent_without_a_file(tmp_path: Path):
    model = load(make_tiny_model(tmp_path, tied=True))
    source = WireSource(partial(wire_tensors, model, torch.bfloat16))
    manifest = announce(source, version=7)
    assert (manifest.version, manifest.path) == (7, "")
    assert [(t.name, t.shape) for t in manifest.tensors] == [(name, tuple(t.shape)) for name, t in source]
    assert {(t.dtype, t.offset, t.crc32) for t in manifest.tensors} == {("bfloat16", 0, 0)}
    assert manifest.num_bytes == 2 * sum(p.numel() for p in model.parameters())
    assert Manifest.from_dict(manifest.to_dict()) == manifest


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([1, 2, 3], 6 * 4),  # less than vLLM's buffer: all of it
        ([2**27, 2**28, 2**27], 2**30),  # 2^29 values of 4 bytes: 2 GiB through the default of 1 GiB
        ([2**29, 2**28], 2**31),  # one tensor of 2 GiB has to fit
    ],
)
def test_the_buffer_holds_the_largest_tensor_and_never_more_than_all(rows: list[int], expected: int):
    tensors = [TensorSpec(name=f"t{r}", dtype="float32", shape=(r,), offset=0, crc32=0) for r in rows]
    assert DEFAULT_PACKED_BUFFER_SIZE_BYTES == 2**30
    assert buffer_bytes(Manifest(version=0, path="", tensors=tuple(tensors))) == expected


def test_nccl_counts_the_learner_and_every_engine_as_a_rank():
    info = INIT_INFOS["nccl"](1024, 3)
    assert (info.backend, info.rank, info.is_sender, info.world_size) == ("nccl", 0, True, 4)
    assert (info.packed, info.packed_buffer_size_bytes) == (True, 1024)
    assert INIT_INFOS["ipc"](1024, 3).packed_buffer_size_bytes == 1024


def spec(device: str, backend: str, **fields: object) -> EngineSpec:
    return EngineSpec(
        **{
            "name": "engine",
            "model": "m",
            "device": device,
            "dtype": "float32",
            "context_length": 256,
            "max_num_seqs": 8,
            "weight_transfer_backend": backend,
            **fields,
        }
    )


def test_what_spares_the_cpu_a_compiler_does_not_slow_a_gpu():
    on_cpu, on_gpu = (
        engine_environment(spec("cpu", "whetstone_shm")),
        engine_environment(spec("cuda", "nccl")),
    )
    assert on_cpu["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in on_gpu
    assert "OMP_NUM_THREADS" not in on_gpu
    assert device_arguments(spec("cpu", "whetstone_shm"))["enforce_eager"]
    assert device_arguments(spec("cuda", "ipc", num_gpus=0.5)) == {"gpu_memory_utilization": 0.45}


def test_only_ipc_lets_pickles_into_the_engine():
    allowed = {
        backend: "VLLM_ALLOW_INSECURE_SERIALIZATION" in engine_environment(spec("cuda", backend))
        for backend in ("whetstone_shm", "ipc", "nccl")
    }
    assert allowed == {"whetstone_shm": False, "ipc": True, "nccl": False}
