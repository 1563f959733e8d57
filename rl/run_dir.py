"""The directory of one run: its configuration, manifest, metrics, trajectories, checkpoints and state."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rl.config import Config
from rl.durable import atomic_write_json
from rl.machine import Machine, command_line, source_commit, stack_versions
from rollout.jsonl import JsonlWriter

LOCK_NAME = ".lock"


class RunDirError(RuntimeError):
    """The directory cannot be used for this run; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where the run stands after a finished step: all that a resume must know besides the checkpoint.

    `next_task_index` is the task stream's cursor; `policy_version` is what the engines serve. Everything
    random is derived from the configuration's seed and these counters: no generator's state is kept.
    """

    step: int = 0
    next_task_index: int = 0
    policy_version: int = 0
    num_optimizer_steps: int = 0
    num_trained_tokens: int = 0
    num_sampled_tokens: int = 0
    wall_s: float = 0.0


class RunDir:
    """A locked run directory. One process holds it; the lock goes with the process, however it ends.

    config.json          every field of the configuration, resolved
    manifest.json        versions, commit, host, command line, environment and reward by name
    metrics.jsonl        one line a step
    trajectories.jsonl   one line a trajectory
    incidents/           batches of updates that were not applied; usually there is none
    state.json           RunState after the last finished step
    checkpoints/         step_000020/ and so on, each whole
    """

    def __init__(self, path: Path) -> None:
        """Take a new or empty directory; RunDirError when it is in use or holds a run."""
        self.path = path.absolute()
        self._lock = _take(self.path)
        self._metrics = JsonlWriter(self.path / "metrics.jsonl")
        self.checkpoints.mkdir()

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def incidents(self) -> Path:
        """Where the batches of updates that were not applied are kept; made when there is one."""
        return self.path / "incidents"

    def checkpoint(self, step: int) -> Path:
        """Where the policy after `step` steps is or will be, whole: fill it through `atomic_folder`."""
        return self.checkpoints / f"step_{step:06d}"

    def write_config(self, config: Config) -> None:
        atomic_write_json(self.path / "config.json", asdict(config))

    def write_manifest(self, config: Config, machine: Machine) -> None:
        atomic_write_json(self.path / "manifest.json", run_manifest(config, machine))

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line: {"step": step, name: value, ...}; on disk when this returns."""
        self._metrics.append([{"step": step, **metrics}])

    def write_state(self, state: RunState) -> None:
        atomic_write_json(self.path / "state.json", asdict(state))

    def read_state(self) -> RunState:
        return RunState(**json.loads((self.path / "state.json").read_text()))

    def close(self) -> None:
        self._metrics.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_usable(path: Path) -> None:
    """Raise RunDirError now where RunDir(path) would, as things stand; nothing is made."""
    if (path / LOCK_NAME).exists():
        os.close(_take(path))
    elif path.is_dir():
        _refuse_contents(path)


def default_run_dir(recipe: str, root: Path = Path("runs")) -> Path:
    """runs/<recipe>-<local time>, with a number added when that second is taken."""
    stamp = f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    return next(path for path in _numbered(root / stamp) if not path.exists())


def run_manifest(config: Config, machine: Machine) -> dict[str, Any]:
    """What ran, with what, where: enough to run it again."""
    source = source_commit(Path(__file__).resolve().parent.parent)
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": command_line(),
        "env": config.env,
        "level": config.level,
        "reward": config.reward or f"{config.env} (the environment's own)",
        "algorithm": config.algorithm,
        "model": config.model,
        "seed": config.seed,
        "source": source and asdict(source),
        "versions": stack_versions(),
        "machine": asdict(machine),
    }


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def _take(path: Path) -> int:
    """Create `path` if need be and lock it. Returns the lock's handle; child processes do not inherit it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(
            f"run directory {path} cannot be made ({error.strerror}); give another --run-dir"
        ) from error
    lock_path = path / LOCK_NAME
    if not lock_path.exists():
        _refuse_contents(path)
    handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode()
            raise RunDirError(
                f"run directory {path} is in use by {owner}; wait for it or give another --run-dir"
            ) from None
        _refuse_contents(path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _refuse_contents(path: Path) -> None:
    contents = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK_NAME)
    if contents:
        raise RunDirError(
            f"run directory {path} is not empty (it holds {', '.join(contents[:3])}"
            f"{', ...' if len(contents) > 3 else ''}); give an empty or a new --run-dir"
        )
