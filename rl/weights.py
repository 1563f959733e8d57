"""The sending side of a weight sync.

Parameters into shared memory, a manifest of them, and their sketches.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from rl.backends.tensors import assign, is_quantized, num_elements, whole
from rl.lora_layers import is_of_adapter, whole_tensors
from rollout.manifest import Manifest, TensorSpec
from rollout.weight_sketch import Sketch, sketch_tensor

if TYPE_CHECKING:
    from rl.model_lora import Adapter

KEPT_ADAPTERS = 2
"""Folders of published adapters that are kept: engines hold the current one, and the one before it while its
requests are in flight."""


def wire_tensors(
    model: nn.Module, dtype: torch.dtype, *, merged: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter by its name in a Hugging Face checkpoint, in the engine's dtype.

    A tied head is one tensor, sent once. A mixture's experts, one parameter in transformers, are a tensor
    each, as a checkpoint has them and as vLLM loads them. With `merged` what an adapter adds is in them.
    Sharded ones are gathered one by one: every rank must go through all of them.
    """
    for name, parameter in whole_tensors(model, merged=merged):
        cast = {name: parameter.to(dtype)}
        for saved_name, tensor in revert_weight_conversion(model, cast).items():  # pyright: ignore[reportArgumentType]
            yield saved_name, tensor.contiguous()


class SharedWeights:
    """The latest published policy in shared memory; written in place, so it stays warm.

    The file has no name in a folder: other processes of this user open it as this process's file descriptor,
    and it goes with its last user, whatever kills them. It counts as memory, not against the size of
    /dev/shm. The engine has copied every tensor out of it by the time a sync returns, so overwriting is safe.
    """

    def __init__(self, name: str, model: nn.Module, dtype: torch.dtype) -> None:
        """Raises OSError when the memory cannot be had."""
        self._model, self._dtype = model, dtype
        parameters = (p for name, p in model.named_parameters() if not is_of_adapter(name))
        size = sum(map(num_elements, parameters)) * dtype.itemsize
        self._file = os.fdopen(os.memfd_create(f"whetstone-{name}"), "r+b")
        os.posix_fallocate(self._file.fileno(), 0, size)
        self._view = mmap.mmap(self._file.fileno(), size)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._file.fileno()}")

    def write(self, version: int) -> Manifest:
        """Write every parameter as it is now, and say what was written."""
        specs: list[TensorSpec] = []
        offset = 0
        for name, tensor in wire_tensors(self._model, self._dtype):
            payload = tensor.cpu().view(torch.uint8).numpy().tobytes()
            self._view[offset : offset + len(payload)] = payload
            specs.append(
                TensorSpec(
                    name=name,
                    dtype=str(self._dtype).removeprefix("torch."),
                    shape=tuple(tensor.shape),
                    offset=offset,
                    crc32=zlib.crc32(payload),
                )
            )
            offset += len(payload)
        return Manifest(version=version, path=str(self.path), tensors=tuple(specs))

    def close(self) -> None:
        """Give the memory back."""
        self._view.close()
        self._file.close()


class Bystander:
    """The outlet of a rank that sends nothing: it gathers whenever the main rank's outlet goes through all
    that is sent. A device channel does so when it is made and when it sends, the others when written.
    """

    def __init__(self, gather: Callable[[], Iterable[object]], *, has_channel: bool) -> None:
        """`gather` goes through what the main rank's outlet does, in its order."""
        self._gather, self._has_channel = gather, has_channel
        if has_channel:
            self.send()

    def write(self, version: int) -> None:
        del version
        if not self._has_channel:
            self.send()

    def send(self) -> None:
        for _ in self._gather():
            pass

    def close(self) -> None:
        """Nothing to give back."""


def sketch_weights(
    model: nn.Module, dtype: torch.dtype, seed: int, *, merged: bool = True
) -> dict[str, Sketch]:
    """What an engine that serves `model` in `dtype` must show (rollout/weight_sketch.py).

    A tied head is expected under its own name as well: on some devices the engine keeps a copy of its own.
    """
    sketches = {
        name: sketch_tensor(tensor, seed) for name, tensor in wire_tensors(model, dtype, merged=merged)
    }
    embedding = next((name for name in sketches if name.endswith("embed_tokens.weight")), None)
    if embedding is not None and "lm_head.weight" not in sketches:
        sketches["lm_head.weight"] = sketches[embedding]
    return sketches


@torch.no_grad()
def perturb(model: nn.Module, scale: float, seed: int, *, adapter_only: bool = False) -> None:
    """Add seeded noise to every parameter: normal, with standard deviation `scale` x the tensor's RMS.

    An adapter's has standard deviation `scale`: half of a fresh one is 0, and it would add nothing. What is
    held in 4 bits stays: its layer moves with its adapter, and is not the model folder's in any case.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        of_adapter = is_of_adapter(name)
        if is_quantized(parameter) or (adapter_only and not of_adapter):
            continue
        value = whole(parameter)
        rms = value.float().square().mean().sqrt().clamp(min=1e-3)
        noise = torch.randn(value.shape, generator=generator).to(value)
        assign(parameter, value + noise * (scale * (torch.ones_like(rms) if of_adapter else rms)).to(value))


class AdapterFiles:
    """The latest published adapters, each in a folder of its own that engines load.

    They lie among the run's temporary files and go with them.
    """

    def __init__(self, name: str, adapter: Adapter) -> None:
        self._adapter = adapter
        self._folder = Path(tempfile.mkdtemp(prefix=f"whetstone-{name}-"))
        self._written: list[Path] = []

    def write(self, version: int) -> Manifest:
        """Save the adapter as it is now to a fresh folder, and say what was saved."""
        path = Path(tempfile.mkdtemp(prefix=f"{version}-", dir=self._folder))
        adapter = self._adapter.gathered()
        adapter.save_pretrained(path)
        self._written.append(path)
        while len(self._written) > KEPT_ADAPTERS:
            shutil.rmtree(self._written.pop(0), ignore_errors=True)
        specs = [
            TensorSpec(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                offset=0,
                crc32=zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()),
            )
            for name, tensor in adapter.tensors().items()
        ]
        return Manifest(version=version, path=str(path), tensors=tuple(specs))

    def close(self) -> None:
        """Remove them."""
        shutil.rmtree(self._folder, ignore_errors=True)


Outlet = SharedWeights | AdapterFiles


def open_outlet(name: str, model: nn.Module, dtype: torch.dtype, adapter: Adapter | None) -> Outlet:
    """Where engines of this host find what is published: whole weights, or the adapter that they serve."""
    return SharedWeights(name, model, dtype) if adapter is None else AdapterFiles(name, adapter)
