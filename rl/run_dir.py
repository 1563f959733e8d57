"""The directory of one run: its configuration, manifest, metrics, trajectories, checkpoints and state."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rl.checkpoint import checkpoints_of
from rl.config import Config
from rl.durable import atomic_write_json
from rl.inputs import code_digests, input_digests
from rl.intervals import SuccessRate
from rl.machine import Machine, command_line, source_commit, stack_versions
from rl.run_lock import RunDirError, take
from rl.sandbox_checks import sandbox_facts
from rollout.jsonl import JsonlWriter, read_jsonl

FORMAT = 1
"""Of a run's files; raised when an older version could no longer read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where the run stands after a finished step: the driver's part of a checkpoint.

    `next_task_index` is the task stream's cursor; `policy_version` is what the engines serve;
    `success_before` is (solved, tasks) of the starting policy; `objective` and `gates` are what these
    learned from the steps before; `record_is_full` says that trajectories are no longer recorded;
    `tracker_ids` is what trackers.json held; `file_bytes` is the length of every JSON-lines file, by name;
    `monitor` is what the monitor of reward hacking compares; `sandbox` says where model-written code ran.
    Everything random in the driver and the engines is derived from the configuration's seed and these
    counters.
    """

    step: int = 0
    next_task_index: int = 0
    policy_version: int = 0
    num_optimizer_steps: int = 0
    num_trained_tokens: int = 0
    num_sampled_tokens: int = 0
    wall_s: float = 0.0
    success_before: tuple[int, int] | None = None
    objective: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, Any] = field(default_factory=dict)
    record_is_full: bool = False
    tracker_ids: dict[str, Any] = field(default_factory=dict)
    file_bytes: dict[str, int] = field(default_factory=dict)
    monitor: dict[str, Any] = field(default_factory=dict)
    sandbox: str = ""

    @property
    def before(self) -> SuccessRate | None:
        """Success of the policy that the run started from; None in a new run."""
        return None if self.success_before is None else SuccessRate(*self.success_before)


NEW_RUN = RunState()


class RunDir:
    """A locked run directory. One process holds it; the lock goes with the process, however it ends.

    config.json          every field of the configuration, resolved
    manifest.json        versions, commit, host, command line, environment and reward by name
    metrics.jsonl        one line a step
    trajectories.jsonl   one line a trajectory
    consumed.jsonl       one line a step: the ids of the trajectories that were trained on
    reward_errors.jsonl  one line an episode that the reward could not score, with its traceback
    resumes.json         each time that the run was gone on with: when, from which step, what had changed
    incidents/           batches of updates that were not applied, why a tracker is off; usually there is none
    trackers.json        which wandb run this is; tracker-*.log, wandb/, tensorboard/: what trackers write
    state.json           RunState after the last finished step
    checkpoints/         step_000020/ and so on, each whole
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        """Take a new or empty directory, or (`resumed`) that of a run; RunDirError when that cannot be."""
        self.path = path.absolute()
        self._lock = take(self.path, holds_run=resumed)
        self.checkpoints.mkdir(exist_ok=resumed)
        for left in self.checkpoints.glob(".*.tmp"):  # of a killed writer: this process holds the lock now
            shutil.rmtree(left)
        self._open()

    def _open(self) -> None:
        self._metrics = JsonlWriter(self.path / "metrics.jsonl")
        self._consumed = JsonlWriter(self.path / "consumed.jsonl")
        self._last_consumed = max((row["step"] for row in read_jsonl(self._consumed.path)), default=0)

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories.jsonl"

    @property
    def reward_errors(self) -> Path:
        return self.path / "reward_errors.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def incidents(self) -> Path:
        """Where what went wrong is kept; made when something does."""
        return self.path / "incidents"

    def checkpoint(self, step: int) -> Path:
        """Where the policy after `step` steps is or will be, whole: fill it through `atomic_folder`."""
        return self.checkpoints / f"step_{step:06d}"

    def write_config(self, config: Config) -> None:
        begun = replace(config, resume="", force_resume=False)  # how it was gone on with is in resumes.json
        atomic_write_json(self.path / "config.json", asdict(begun))

    def write_manifest(self, config: Config, machine: Machine) -> None:
        atomic_write_json(self.path / "manifest.json", run_manifest(config, machine))

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line: {"step": step, name: value, ...}; on disk when this returns."""
        self._metrics.append([{"step": step, **metrics}])

    def append_consumed(self, step: int, trajectory_ids: Sequence[str]) -> None:
        """Note the trajectories that step `step` trained on; on disk when this returns.

        Raises:
            ValueError: the ledger has that step already: its trajectories would be trained on twice.
        """
        if step <= self._last_consumed:
            raise ValueError(
                f"{self._consumed.path} has step {self._last_consumed} already, and step {step} comes again: "
                "its trajectories would be trained on twice"
            )
        self._consumed.append([{"step": step, "trajectories": list(trajectory_ids)}])
        self._last_consumed = step

    def append_reward_errors(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append a line for each episode that the reward could not score; the file is made by the first."""
        with JsonlWriter(self.reward_errors) as writer:
            writer.append(rows)

    def file_bytes(self) -> dict[str, int]:
        """The length of every JSON-lines file, by name."""
        return {file.name: file.stat().st_size for file in sorted(self.path.glob("*.jsonl"))}

    def go_back(self, file_bytes: Mapping[str, int]) -> None:
        """Cut every JSON-lines file to what it was, before anything else is written: the rest comes again.

        Raises:
            RunDirError: a file is shorter than it was, or gone.
        """
        self._metrics.close()
        self._consumed.close()
        found = self.file_bytes()
        short = [name for name, size in file_bytes.items() if found.get(name, -1) < size]
        if short:
            raise RunDirError(f"{self.path}: {', '.join(short)} lost lines that a checkpoint relies on")
        for name in found:
            os.truncate(self.path / name, file_bytes.get(name, 0))
        self._open()

    def note_resume(self, step: int, changes: Sequence[str]) -> None:
        """Add to resumes.json that the run goes on after `step`, and what was forced."""
        path = self.path / "resumes.json"
        before = json.loads(path.read_text()) if path.exists() else []
        now = datetime.now(UTC).isoformat(timespec="seconds")
        atomic_write_json(path, [*before, {"at": now, "after_step": step, "forced": list(changes)}])

    def read_manifest(self) -> dict[str, Any]:
        """manifest.json. Raises RunDirError where it cannot be read, or is of a newer version."""
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            version = manifest.get("format", 1)
        except (OSError, ValueError, AttributeError) as error:
            raise RunDirError(f"{path} cannot be read ({error}): the run cannot be resumed") from error
        if version > FORMAT:
            raise RunDirError(
                f"{path} is of format {version}, and this version knows {FORMAT}: update whetstone"
            )
        return manifest

    def write_forced(self, config: Config, machine: Machine) -> None:
        """Write down what the run goes on with; manifest.json keeps how and when it was started."""
        self.write_config(config)
        recorded = self.read_manifest()
        begun = {name: recorded[name] for name in ("started_at", "command_line") if name in recorded}
        atomic_write_json(self.path / "manifest.json", run_manifest(config, machine) | begun)

    def write_tracker_ids(self, ids: Mapping[str, Any]) -> None:
        atomic_write_json(self.path / "trackers.json", dict(ids))

    def read_tracker_ids(self) -> dict[str, Any]:
        """By tracker, where it goes on; empty where none needs that."""
        path = self.path / "trackers.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def set_aside(self, step: int) -> None:
        """Rename the damaged checkpoints after `step` to broken_step_...: their steps come again."""
        for path in checkpoints_of(self.checkpoints):
            if path > self.checkpoint(step):
                aside = path.with_name(f"broken_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints; 0 keeps all."""
        for path in checkpoints_of(self.checkpoints)[keep:] if keep else ():
            shutil.rmtree(path)

    def write_state(self, state: RunState) -> None:
        atomic_write_json(self.path / "state.json", asdict(state))

    def read_state(self) -> RunState:
        return RunState(**json.loads((self.path / "state.json").read_text()))

    def close(self) -> None:
        self._metrics.close()
        self._consumed.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def default_run_dir(recipe: str, root: Path = Path("runs")) -> Path:
    """runs/<recipe>-<local time>, with a number added when that second is taken."""
    stamp = f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    return next(path for path in _numbered(root / stamp) if not path.exists())


def run_manifest(config: Config, machine: Machine) -> dict[str, Any]:
    """What ran, with what, where: enough to run it again."""
    source = source_commit(Path(__file__).resolve().parent.parent)
    return {
        "format": FORMAT,
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
        "code": code_digests(),
        "inputs": input_digests(config),
        "machine": asdict(machine),
        "sandbox": sandbox_facts(config),
    }


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1
