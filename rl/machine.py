"""What this machine has and what is installed on it: facts for the manifest and for defaults."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from rollout.versions import SUPPORTED, installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The hardware that this process may use. `memory_bytes` is the host's."""

    host: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> Self:
        gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return cls(
            host=platform.node(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            gpus=gpus,
        )


def stack_versions() -> dict[str, str]:
    """Python's version and that of every installed distribution of the stack, ours included."""
    versions = {"python": platform.python_version()}
    for name in ("whetstone", *SUPPORTED):
        versions |= installed(name)
    return versions


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCommit:
    """The git commit of the code that runs; `dirty` when tracked files differ from it."""

    commit: str
    dirty: bool


def source_commit(folder: Path) -> SourceCommit | None:
    """The commit that `folder` is checked out at; None where it is no git checkout or there is no git."""
    if shutil.which("git") is None or not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else SourceCommit(commit=commit, dirty=bool(changes))


def command_line() -> list[str]:
    """How this process was started, as `sys.orig_argv` has it: interpreter, `-m` and all."""
    return list(sys.orig_argv)


def _git(folder: Path, *arguments: str, timeout_s: float = 20.0) -> str | None:
    done = subprocess.run(  # a repository without a commit, or owned by another user, is no error of the run
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
