"""The LoRA adapters of one vLLM engine, by name: each has a current version, and the last loaded serves.

Id, name and path are new to vLLM for every version: loaded in place under an old name, vLLM answers out of
what the old one cached (measured: a gap of 0.4 nats).
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from envs.names import unknown_name
from rollout.engine_spec import BASE, POLICY, EngineSpec
from rollout.manifest import Manifest, TensorSpec, WeightSyncError, check_manifest

WEIGHTS = "adapter_model.safetensors"
"""In an adapter's folder, as peft saves it."""

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""safetensors' names of what an adapter may be made of."""


@dataclass(slots=True, kw_only=True, eq=False)
class ServedAdapter:
    """One loaded version of the adapter `name`: vLLM knows it by `number`, `request` asks it to answer.

    `num_requests` are in flight with it. A `request` of None is the drill "no_adapter".
    """

    name: str
    version: int
    number: int
    request: Any  # vllm.lora.request.LoRARequest
    num_requests: int = 0


class ServedAdapters:
    """Which adapters answer. Before the first `load` there is none: the model alone answers."""

    def __init__(self, llm: Any, spec: EngineSpec) -> None:
        self._llm = llm
        self._spec = spec
        self._numbers = itertools.count(1)
        self._current: dict[str, ServedAdapter] = {}
        self._one_at_a_time = asyncio.Lock()

    def named(self, name: str) -> ServedAdapter | None:
        """An adapter's current version; None for the model alone: BASE, and POLICY before its first load.

        Raises:
            ValueError: no adapter of this name is loaded; the nearest is named.
        """
        if name not in self._current and name not in (BASE, POLICY):
            raise ValueError(
                f"{self._spec.name}: {unknown_name('adapter', name, self._current)}; load it first "
                "(receive_adapter), or ask for the model alone (BASE)"
            )
        return self._current.get(name)

    @asynccontextmanager
    async def in_use(self, adapter: ServedAdapter | None) -> AsyncIterator[Any]:
        """What vLLM's request names; the adapter is kept until it ends, even when another serves by then."""
        if adapter is None:
            yield None
            return
        adapter.num_requests += 1
        try:
            yield adapter.request
        finally:
            adapter.num_requests -= 1
            await self._remove_unused(adapter)

    async def load(self, manifest: Manifest, name: str = POLICY, *, drill: str = "") -> None:
        """Load the adapter in the folder `manifest.path`; every request for `name` from now on gets it.

        Raises:
            WeightSyncError: the engine has no room for one more name or for such an adapter, the files there
                are not what the manifest says, or vLLM did not take them. What served still serves.
        """
        async with self._one_at_a_time:
            self._require_room(name)
            check_fit(manifest, self._spec)
            check_files(manifest)
            from vllm.lora.request import LoRARequest  # the environment of vLLM is set by now

            number = next(self._numbers)
            request = LoRARequest(
                lora_name=f"{name} version {manifest.version}, load {number}",
                lora_int_id=number,
                lora_path=manifest.path,
            )
            if not await self._llm.add_lora(request):
                raise WeightSyncError(f"vLLM did not take the adapter {manifest.path}")
            before = self._current.get(name)
            self._current[name] = ServedAdapter(
                name=name,
                version=manifest.version,
                number=number,
                request=None if drill == "no_adapter" else request,
            )
            if before is not None:
                await self._remove_unused(before)

    async def remove(self, name: str) -> None:
        """Forget the adapter `name`, once its requests have ended. Raises ValueError where there is none."""
        async with self._one_at_a_time:
            adapter = self.named(name)
            if adapter is None:
                raise ValueError(
                    f"{self._spec.name} has no adapter {name!r} to remove: the model alone answers"
                )
            del self._current[name]
            await self._remove_unused(adapter)

    async def loaded(self) -> set[int]:
        """The ids of the adapters that vLLM holds."""
        return set(await self._llm.list_loras())

    async def _remove_unused(self, adapter: ServedAdapter) -> None:
        if self._current.get(adapter.name) is not adapter and not adapter.num_requests:
            await self._llm.remove_lora(adapter.number)

    def _require_room(self, name: str) -> None:
        room = self._spec.num_adapters if self._spec.adapter_rank else 0
        if name == BASE:
            raise WeightSyncError("an adapter needs a name; the empty one (BASE) is the model alone")
        if name not in self._current and len(self._current) >= room:
            held = ", ".join(map(repr, self._current)) or "none"
            raise WeightSyncError(
                f"no room for the adapter {name!r}: the engine was made for {room} at once and holds "
                f"{held}. Make it for more (EngineSpec.num_adapters, and adapter_rank above 0), or remove one"
            )


def check_fit(manifest: Manifest, spec: EngineSpec) -> None:
    """Refuse an adapter that `spec` has no room for: vLLM would silently leave out what it does not expect.

    Raises:
        WeightSyncError: its rank is larger, or it is beside other modules.
    """
    rank, targets = adapter_shape(manifest)
    if rank > spec.adapter_rank:
        raise WeightSyncError(
            f"the adapter {manifest.path} has rank {rank}, and the engine was made for up to "
            f"{spec.adapter_rank}: give it a larger adapter_rank"
        )
    if others := sorted({*targets} - {*spec.adapter_targets}):
        raise WeightSyncError(
            f"the adapter {manifest.path} is beside {', '.join(others)}, and the engine was made for "
            f"adapters beside {', '.join(spec.adapter_targets)}: name them in adapter_targets"
        )


def adapter_shape(manifest: Manifest) -> tuple[int, tuple[str, ...]]:
    """What an engine makes room for: the adapter's largest rank, and the last parts of its modules' names."""
    ranks = [tensor.shape[0] for tensor in manifest.tensors if ".lora_A." in tensor.name]
    modules = {tensor.name.partition(".lora_")[0].rpartition(".")[2] for tensor in manifest.tensors}
    return max(ranks, default=0), tuple(sorted(modules))


def check_files(manifest: Manifest) -> None:
    """Refuse an adapter that is not what the manifest says.

    Raises:
        WeightSyncError: a tensor is missing, unknown, of another shape or of other bytes; it is named.
    """
    try:
        found = {tensor.name: tensor for tensor in adapter_tensors(Path(manifest.path))}
    except ValueError as error:
        raise WeightSyncError(f"the adapter of version {manifest.version} cannot be read: {error}") from error
    check_manifest(manifest, {name: tensor.shape for name, tensor in found.items()})
    torn = [spec.name for spec in manifest.tensors if found[spec.name].crc32 != spec.crc32]
    if torn:
        raise WeightSyncError(f"bytes in {manifest.path} do not match the manifest's CRC: {', '.join(torn)}")


def adapter_tensors(folder: Path) -> tuple[TensorSpec, ...]:
    """What the adapter in `folder`, in peft's format, is made of, with a CRC of each tensor's bytes.

    Raises:
        ValueError: it cannot be read, or its numbers are neither float32, bfloat16 nor float16.
    """
    try:
        tensors = deserialize((folder / WEIGHTS).read_bytes())
        return tuple(
            TensorSpec(
                name=name,
                dtype=DTYPES[tensor["dtype"]],
                shape=tuple(tensor["shape"]),
                offset=0,
                crc32=zlib.crc32(tensor["data"]),
            )
            for name, tensor in tensors
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{folder / WEIGHTS} holds {error}; expected {', '.join(DTYPES)}") from error


def adapter_manifest(folder: Path, version: int) -> Manifest:
    """What an adapter in peft's format, as it lies in `folder`, is called to an engine (receive_adapter).

    Raises:
        ValueError: as `adapter_tensors`.
    """
    return Manifest(version=version, path=str(folder), tensors=adapter_tensors(folder))
