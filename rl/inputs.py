"""Digests of what a run is made from besides its settings: our source, a user's files, the model's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rl.config import Config

PACKAGES = ("envs", "rewards", "rollout", "rl", "recipes")
NAMING = ("env", "reward", "reward_python", "algorithm", "model", "teacher", "lora_adapter", "data")
"""Settings that may name a file, a folder or a repository; a recipe need not have all of them."""
OF_HUB: Mapping[str, Literal["model", "dataset"]] = {
    "model": "model",
    "teacher": "model",
    "lora_adapter": "model",
    "data": "dataset",
}
HEAD_BYTES = 1 << 20


def code_digests() -> dict[str, str]:
    """Package -> a digest of its Python files."""
    root = Path(__file__).resolve().parent.parent
    return {name: _digest(sorted((root / name).rglob("*.py")), root) for name in PACKAGES}


def input_digests(config: Config) -> dict[str, str]:
    """A digest of each file or folder that a setting names, and the commit of a model or data set of the hub.

    Names of ours have none: `code_digests` covers them. Of a model's large files only the size and the first
    MiB are read: it finds another model, not a flipped bit. Data are read whole. A reward that another Python
    finds among its own packages has none either.
    """
    digests = {}
    for name in NAMING:
        value = _stripped(getattr(config, name, ""))
        elsewhere = name == "reward" and config.reward_python and ".py:" not in value
        path = None if elsewhere else _path_of(value)
        if path is not None and path.is_file():
            digests[name] = _digest([path], path.parent, whole=name == "data")
        elif path is not None and path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            digests[name] = _digest(files, path, whole=name == "data")
        elif name in OF_HUB and (commit := _hub_commit(value, OF_HUB[name])):
            digests[name] = f"commit {commit}"
    return digests


def _stripped(value: str) -> str:
    """What a reward is made of: `shuffled:`, `reward_model:` and `judge:` only say how."""
    for prefix in ("shuffled:", "reward_model:", "judge:"):
        value = value.removeprefix(prefix)
    return value


def _path_of(value: str) -> Path | None:
    """The file or folder of `my_env.py:ENV`, `package.module:ENV`, or a path; None where it names none."""
    head, colon, _ = value.partition(":")
    if not value:
        return None
    if not colon or head.endswith(".py"):
        return Path(head).expanduser()
    try:
        found = find_spec(head)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin else None


def _hub_commit(repository: str, kind: Literal["model", "dataset"]) -> str | None:
    """The commit of a hub's repository in the local cache; None where it is not there (yet)."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type=kind))
        return (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None


def _digest(files: list[Path], root: Path, *, whole: bool = False) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(
                hashlib.file_digest(stream, "sha256").digest() if whole else stream.read(HEAD_BYTES)
            )
    return digest.hexdigest()[:16]
