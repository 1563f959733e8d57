"""What a weight sync promises: the name, shape, dtype and CRC of every tensor of one policy version.

Only this travels through Ray; the bytes go from learner to engine by the weight-transfer backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class WeightSyncError(RuntimeError):
    """The engine does not serve the learner's weights; the message names the tensor. The run stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One Hugging Face tensor.

    `crc32` is over its contiguous bytes in `dtype`, at `offset` of the shared file. Both are 0 where there is
    no file: a CRC would bring every weight of a GPU to main memory, and the sketches of a sync compare every
    tensor afterwards anyway.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc32: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All tensors of policy `version`.

    `path` is the shared-memory file; empty for channels from device to device.
    """

    version: int
    path: str
    tensors: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: it crosses vLLM's msgpack boundary."""
        return {
            "version": self.version,
            "path": self.path,
            "tensors": [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in self.tensors],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Manifest:
        tensors = tuple(TensorSpec(**{**t, "shape": tuple(t["shape"])}) for t in plain["tensors"])
        return cls(version=plain["version"], path=plain["path"], tensors=tensors)


def check_manifest(manifest: Manifest, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a manifest that is not exactly the tensors the receiver serves.

    Args:
        manifest: what the sender promises.
        expected: name -> shape of every tensor that the receiving model is made of.

    Raises:
        WeightSyncError: a tensor is missing, unknown, sent twice or of another shape; every one is named.
    """
    names = [tensor.name for tensor in manifest.tensors]
    sent = {tensor.name: tensor.shape for tensor in manifest.tensors}
    problems = [f"missing {name}" for name in expected if name not in sent]
    problems += [f"unknown {name}" for name in sent if name not in expected]
    problems += [f"{name} sent {names.count(name)} times" for name in sorted(_repeated(names))]
    problems += [
        f"{name} has shape {list(shape)}, the engine serves {list(expected[name])}"
        for name, shape in sent.items()
        if name in expected and tuple(shape) != tuple(expected[name])
    ]
    if problems:
        raise WeightSyncError(
            f"manifest of policy version {manifest.version} refused before loading: " + "; ".join(problems)
        )


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}
