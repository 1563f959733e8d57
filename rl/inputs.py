"""Digests of what a run is made from besides its settings: our source, a user's files, the model's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rl.config import Config

PACKAGES = ("envs", "rewards", "rollout", "rl", "recipes")
HEAD_BYTES = 1 << 20


def code_digests() -> dict[str, str]:
    """Package -> a digest of its Python files."""
    root = Path(__file__).resolve().parent.parent
    return {name: _digest(sorted((root / name).rglob("*.py")), root) for name in PACKAGES}


def input_digests(config: Config) -> dict[str, str]:
    """A digest of each file or folder that a setting names; names of the hub and of ours have none.

    Of large files only the size and the first MiB are read: it finds another model, not a flipped bit.
    """
    digests = {}
    for name in ("env", "reward", "algorithm", "model", "teacher"):
        value: str = getattr(config, name)
        path = Path(value.split(":")[0] if value.partition(":")[0].endswith(".py") else value)
        if value and path.is_file():
            digests[name] = _digest([path], path.parent)
        elif value and path.is_dir():
            digests[name] = _digest(sorted(file for file in path.rglob("*") if file.is_file()), path)
    return digests


def _digest(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        digest.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        digest.update(head)
    return digest.hexdigest()[:16]
