"""Saving policies and resumable checkpoints, whole or not at all, and proving a checkpoint before it is used.

A checkpoint is the policy's folder in Hugging Face format, so that anything that loads models loads it, with
`training/` (safetensors and JSON) beside the weights, and `sha256.json`, written last: what every other file
must hash to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl.durable import atomic_folder, require_free_bytes

HASHES = "sha256.json"
TENSORS = Path("training/learner.safetensors")
NUMBERS = Path("training/learner.json")
RUN_STATE = Path("training/run.json")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """What a learner is made of besides the policy: `tensors` by name, `numbers` that JSON holds exactly."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def save_checkpoint(
    model: Any, tokenizer: Any, learner: LearnerState, run_state: Mapping[str, Any], path: Path
) -> None:
    """Save all that a run needs to go on as the folder `path`.

    Args:
        model, tokenizer: saved in Hugging Face format.
        learner: optimizer, schedule, random state, critic.
        run_state: the driver's part (rl/run_dir.py: RunState), plain JSON.

    Raises:
        OSError: the disk is too small or full; the message names the path and what is missing. Nothing is
            left at `path`.
    """
    _require_room(path, model, learner.tensors.values())
    with atomic_folder(path) as folder:
        _write_policy(model, tokenizer, folder, path)
        (folder / TENSORS).parent.mkdir()
        _safely(path, lambda: save_file(_savable(learner.tensors), folder / TENSORS))
        (folder / NUMBERS).write_text(json.dumps(learner.numbers))
        (folder / RUN_STATE).write_text(json.dumps(run_state, indent=1))
        hashes = {str(file.relative_to(folder)): sha256(file) for file in _files(folder)}
        (folder / HASHES).write_text(json.dumps(hashes, indent=1))


def load_learner_state(path: Path) -> LearnerState:
    """The learner's part of a checkpoint that `verify` has passed."""
    return LearnerState(tensors=load_file(path / TENSORS), numbers=json.loads((path / NUMBERS).read_text()))


def load_run_state(path: Path) -> dict[str, Any]:
    """The driver's part of a checkpoint that `verify` has passed."""
    return json.loads((path / RUN_STATE).read_text())


def verify(path: Path) -> None:
    """Raise CheckpointError, naming every file that is missing, too much or not what was written."""
    try:
        hashes: dict[str, str] = json.loads((path / HASHES).read_text())
        found = {str(file.relative_to(path)): file for file in _files(path) if file.name != HASHES}
        names = sorted({*hashes, *found})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path / HASHES} cannot be read: {error}") from error
    problems = [
        f"{name} is missing"
        if name not in found
        else f"{name} was not written by the run"
        if name not in hashes
        else f"{name} is damaged"
        for name in names
        if name not in found or name not in hashes or sha256(found[name]) != hashes[name]
    ]
    if problems:
        raise CheckpointError(f"checkpoint {path}: " + "; ".join(problems))


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first; half-written ones have other names."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def newest_sound(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `verify`, if any, and what was wrong with newer ones."""
    problems: list[str] = []
    for path in checkpoints_of(folder):
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return path, problems
    return None, problems


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _require_room(path: Path, model: Any, tensors: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *tensors))
    require_free_bytes(path.parent, num_bytes, f"the checkpoint {path.name}")


def _write_policy(model: Any, tokenizer: Any, folder: Path, path: Path) -> None:
    _safely(path, lambda: model.save_pretrained(folder, safe_serialization=True))
    _safely(path, lambda: tokenizer.save_pretrained(folder))


def _safely(path: Path, write: Any) -> None:
    try:
        write()
    except SafetensorError as error:  # how safetensors says that a write failed
        raise OSError(f"checkpoint {path} could not be written: {error}") from error


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors wants contiguous tensors that share no memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
