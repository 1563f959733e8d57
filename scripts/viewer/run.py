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
    def is_live(self) -> bool:
        """Whether a process of this machine holds the run's lock."""
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
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.path.parent.name}/{run.name}"
    return runs


def is_locked(path: Path) -> bool:
    """Whether any process holds a lock on the file.

    Asked of the kernel's table, never by trying to take the lock: a run that starts in that moment would be
    told that its directory is in use.
    """
    try:
        inode = os.stat(path).st_ino
    except FileNotFoundError:
        return False
    # 1: FLOCK  ADVISORY  WRITE 4242 fe:01:1313 0 EOF, where 1313 is the inode; "1: -> FLOCK" only waits.
    held = (line.split() for line in LOCKS.read_text().splitlines() if "->" not in line)
    return any(fields[5].endswith(f":{inode}") for fields in held)


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
