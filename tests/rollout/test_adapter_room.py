"""What an engine makes room for, and what is refused before vLLM hears of it; no engine is started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rollout.engine_adapters import WEIGHTS, ServedAdapters, adapter_manifest, adapter_shape, adapter_tensors
from rollout.engine_spec import BASE, POLICY, EngineSpec, adapter_arguments
from rollout.manifest import WeightSyncError

SPEC = EngineSpec(
    name="engine 0",
    model="model",
    device="cpu",
    dtype="float32",
    context_length=64,
    max_num_seqs=4,
    weight_transfer_backend="whetstone_shm",
)
ROOM = replace(SPEC, adapter_rank=4, adapter_targets=("q_proj",))


def write_adapter(folder: Path, *, module: str = "q_proj", rank: int = 4, dtype=torch.float32) -> Path:
    """The tensors of an adapter beside one layer, 8 by 8."""
    folder.mkdir(exist_ok=True)
    name = f"base_model.model.model.layers.0.self_attn.{module}"
    shapes = {f"{name}.lora_A.weight": (rank, 8), f"{name}.lora_B.weight": (8, rank)}
    save_file({name: torch.ones(shape).to(dtype) for name, shape in shapes.items()}, folder / WEIGHTS)
    return folder


def test_there_is_room_for_two_versions_of_every_name() -> None:
    """The current one, and the one with which requests in flight began; vLLM has rooms of certain ranks."""
    assert adapter_arguments(SPEC) == {}
    for num, rank, room in ((1, 4, 8), (3, 9, 16), (2, 512, 512)):
        spec = replace(ROOM, num_adapters=num, adapter_rank=rank)
        arguments = adapter_arguments(spec)
        assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (2 * num, 2 * num)
        assert arguments["max_lora_rank"] == room


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_adapters": 2}, "num_adapters = 2 has no effect with adapter_rank = 0"),
        ({"num_adapters": 0, "adapter_rank": 4}, "num_adapters = 0: expected 1 or more"),
        ({"adapter_rank": 513}, "adapter_rank = 513: expected 0 .* to 512"),
        ({"adapter_rank": -1}, "adapter_rank = -1: expected 0"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(fields: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SPEC, **fields)


@pytest.mark.parametrize(
    ("spec", "adapter", "name", "complaint"),
    [
        (SPEC, {}, POLICY, "no room for the adapter 'policy': the engine was made for 0 at once"),
        (ROOM, {}, BASE, "an adapter needs a name"),
        (ROOM, {"rank": 5}, POLICY, "has rank 5, and the engine was made for up to 4"),
        (ROOM, {"module": "o_proj"}, POLICY, "is beside o_proj, and the engine was made for .* q_proj"),
    ],
)
def test_an_adapter_without_room_is_refused_before_vllm_hears_of_it(
    tmp_path: Path, spec: EngineSpec, adapter: dict[str, Any], name: str, complaint: str
) -> None:
    manifest = adapter_manifest(write_adapter(tmp_path, **adapter), 1)
    with pytest.raises(WeightSyncError, match=complaint):
        asyncio.run(ServedAdapters(None, spec).load(manifest, name))


def test_the_policy_and_the_base_are_known_before_anything_is_loaded() -> None:
    adapters = ServedAdapters(None, ROOM)
    assert adapters.named(POLICY) is None
    assert adapters.named(BASE) is None
    with pytest.raises(ValueError, match=r"engine 0: unknown adapter 'rival' \(known: none\); load it first"):
        adapters.named("rival")


def test_an_adapter_is_read_in_its_own_precision(tmp_path: Path) -> None:
    manifest = adapter_manifest(write_adapter(tmp_path, rank=3, dtype=torch.bfloat16), version=5)
    assert {tensor.dtype for tensor in manifest.tensors} == {"bfloat16"}
    assert manifest.num_bytes == 2 * (2 * 3 * 8)
    assert adapter_shape(manifest) == (3, ("q_proj",))
    assert manifest.version == 5


def test_an_adapter_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        adapter_tensors(tmp_path)
    write_adapter(tmp_path, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"holds 'I8'; expected F32, BF16, F16"):
        adapter_tensors(tmp_path)
    file = write_adapter(tmp_path) / WEIGHTS
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: "):
        adapter_tensors(tmp_path)
