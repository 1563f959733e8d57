"""A run directory as it is looked at: read only, and read again while the run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from rollout.versions import installed
from scripts.viewer.followed import FollowedFile, Problems
from scripts.viewer.index import TrajectoryIndex
from scripts.viewer.tokens import TokenTexts

LOCKS = Path("/proc/locks")
LOCK_NAME = ".lock"  # of rl.run_dir, whose import loads torch for seconds; a test compares the two


class NotViewable(ValueError):
    """The path is no run that this version can show; the message says what was expected."""


class ViewedRun:
    """One run: its settings, its metrics so far, and the index of its trajectories."""

    def __init__(self, path: Path) -> None:
        """Raises NotViewable: not the directory of a run, or of one from a newer version."""
        self.path = path.absolute()
        self.name = self.path.name
        self.config = _settings(self.path, "config.json")
        self.manifest = _settings(self.path, "manifest.json")
        _refuse_newer(self.path, self.manifest)
        self.metrics: list[dict[str, Any]] = []
        self.metrics_generation = 0
        self.problems = Problems()  # of metrics.jsonl
        self.index = TrajectoryIndex(self.path / "trajectories.jsonl")
        self.texts = TokenTexts(self.path, str(self.config.get("model", "")))
        self._metrics_file = FollowedFile(self.path / "metrics.jsonl")

    def refresh(self, budget_s: float) -> bool:
        """Read on in metrics and trajectories, `budget_s` seconds each; whether that found anything."""
        found = self._metrics_file.look()
        if found:
            self.metrics, self.problems = [], Problems()
            self.metrics_generation += 1
        for line in self._metrics_file.lines(budget_s):
            found = True
            try:
                self.metrics.append(_metrics_row(line.data))
            except ValueError as error:
                self.problems.add(self._metrics_file.path, line.number, error)
        return self.index.refresh(budget_s) or found

    def refresh_fully(self) -> None:
        """Read all that is there now."""
        while self.refresh(budget_s=60.0) and self.index.file.is_behind:
            pass

    @property
    def is_live(self) -> bool | None:
        """Whether a process of this machine holds the run's lock; None where the kernel does not tell."""
        return is_locked(self.path / LOCK_NAME)

    @property
    def problem_texts(self) -> list[str]:
        """Every line that could not be read, named; the last text counts those that are left out."""
        found = [*map(str, self.problems.first), *map(str, self.index.problems.first)]
        left_out = self.problems.count + self.index.problems.count - len(found)
        return found + ([f"and {left_out:,} more lines that cannot be read"] if left_out else [])


def open_runs(paths: list[Path]) -> list[ViewedRun]:
    """Every run, with names that differ. Raises NotViewable."""
    runs = [ViewedRun(path) for path in paths]
    for run in runs:
        others = [other.path.parts for other in runs if other is not run]
        parts, num = run.path.parts, 1
        while num < len(parts) and any(other[-num:] == parts[-num:] for other in others):
            num += 1
        run.name = "/".join(parts[-num:])
    return runs


def is_locked(path: Path) -> bool | None:
    """Whether any process holds a lock on the file; None where the kernel keeps no table of locks to read.

    Asked of the kernel's table, never by trying to take the lock: a run that starts in that moment would be
    told that its directory is in use.
    """
    try:
        found = os.stat(path)
        table = LOCKS.read_text()
    except FileNotFoundError as error:
        return None if error.filename == str(LOCKS) else False
    except OSError:
        return None
    devices = {f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}", _device_of_mount(path)}
    # 1: FLOCK  ADVISORY  WRITE 4242 fe:01:1313 0 EOF: device and inode; "1: -> FLOCK" only waits.
    held = (line.split()[5].rpartition(":") for line in table.splitlines() if "->" not in line)
    return any(device in devices and inode == str(found.st_ino) for device, _, inode in held)


def _device_of_mount(path: Path) -> str | None:
    """The device of the file system that holds the file, as the table writes it; None where that is not told.

    On btrfs and overlays it is another one than the file's own st_dev.
    """
    handle = None
    try:
        handle = os.open(path, os.O_PATH)  # reads nothing, and closing it lets no lock go
        told = Path(f"/proc/self/fdinfo/{handle}").read_text()
        mount = next(line.split()[1] for line in told.splitlines() if line.startswith("mnt_id:"))
        mounts = map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
        major, minor = next(fields[2] for fields in mounts if fields[0] == mount).split(":")
    except (OSError, StopIteration):
        return None
    finally:
        if handle is not None:
            os.close(handle)
    return f"{int(major):02x}:{int(minor):02x}"


def _settings(run: Path, name: str) -> dict[str, Any]:
    path = run / name
    if not run.is_dir():
        raise NotViewable(f"{run}: there is no such directory; expected the directory of a run")
    if not path.is_file():
        runs = sorted(entry.parent.name for entry in run.glob("*/config.json"))
        hint = f"; it holds runs, give one of them: {', '.join(runs[:5])}" if runs else ""
        raise NotViewable(f"{run} holds no {name}: it is not the directory of a run{hint}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise NotViewable(f"{path} is not JSON ({error}): the run's directory is damaged") from error
    if not isinstance(found, dict):
        raise NotViewable(f"{path} holds a {type(found).__name__}, expected an object of settings")
    return found


def _refuse_newer(path: Path, manifest: dict[str, Any]) -> None:
    theirs, ours = manifest.get("versions", {}).get("whetstone"), installed("whetstone").get("whetstone")
    try:
        is_newer = bool(theirs and ours) and Version(str(theirs)) > Version(str(ours))
    except InvalidVersion as error:
        raise NotViewable(f"{path / 'manifest.json'} names no version of whetstone: {error}") from error
    if is_newer:
        raise NotViewable(
            f"{path} was written by whetstone {theirs}, and this is {ours}: view it with the version that "
            "wrote it, or a newer one"
        )


def _metrics_row(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("not an object with a step")
    return row
