"""Going on with an interrupted run: what must be as it was, and where it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rl.backend_checks import RANKED
from rl.checkpoint import load_run_state, newest_sound
from rl.config import Config
from rl.run_dir import RunDir, RunState
from rl.run_lock import RunDirError

FREE = {
    "resume",
    "force_resume",
    "show_every",
    "save_every",
    "keep_checkpoints",
    "trackers",
    "max_record_mb",
    "cache_dir",
    "engine_start_s",
    "group_deadline_s",
    "learner_deadline_s",
    "sync_deadline_s",
    "hacking_window",
    "hacking_reference",
    "reward_workers",
    "reward_timeout_s",
    *RANKED,
}
"""Settings that a resume may change: no trained number depends on them."""

PINNED = ("versions", "code", "inputs")
"""What of a manifest must be as it was: libraries, our source, the files that the run is made from."""

C = TypeVar("C", bound=Config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where a run goes on: a checkpoint that is sound, and the driver's state in it."""

    checkpoint: Path
    state: RunState


def recorded_config(path: Path, kind: type[C]) -> C:
    """The configuration of the run in `path`, to be resumed there.

    Raises:
        RunDirError: there is no run, or it is another recipe's or another version's; the fields are named.
    """
    file = path / "config.json"
    try:
        settings: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise RunDirError(f"{path} holds no config.json; --resume expects the directory of a run") from None
    except ValueError as error:
        raise RunDirError(f"{file} is not JSON ({error}): the run cannot be resumed") from error
    if not isinstance(settings, dict):
        raise RunDirError(f"{file} holds a {type(settings).__name__}; expected the settings of a run")
    expected = {field.name for field in fields(kind)}
    if settings.keys() != expected:
        raise RunDirError(
            f"{file} is of another recipe or version: it has {_names(settings.keys() - expected)} too many "
            f"and lacks {_names(expected - settings.keys())}; resume with the recipe that made it"
        )
    return replace(kind(**settings), resume=str(path), run_dir=str(path))


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def changed_settings(recorded: Config, given: Config) -> Iterator[str]:
    """A line for each setting that the command line changes and that trained numbers depend on."""
    before, now = asdict(recorded), asdict(given)
    for name in before:
        if name not in FREE and before[name] != now[name]:
            yield f"{name}: recorded {before[name]!r}, given {now[name]!r}"


def changed_manifest(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each library, source file or input that is not what the run was started with."""
    for part in PINNED:
        before, after = recorded.get(part) or {}, now.get(part) or {}
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                yield f"{part}: {name}: recorded {before.get(name)}, now {after.get(name)}"


def require_unchanged(changes: Iterator[str], *, forced: bool) -> list[str]:
    """The changes, where they are forced; else RunDirError with all of them."""
    lines = list(changes)
    if lines and not forced:
        raise RunDirError(
            "the run cannot go on as it was:\n  "
            + "\n  ".join(lines)
            + "\nrestore them, or give --force-resume to go on all the same (it is then another run)"
        )
    return lines


def find_resume(directory: RunDir) -> tuple[Resume, list[str]]:
    """Where the run of `directory` goes on, and what is wrong with newer checkpoints.

    Raises:
        RunDirError: no checkpoint is sound.
    """
    checkpoint, problems = newest_sound(directory.checkpoints)
    if checkpoint is None:
        found = "; ".join(problems) or "it holds none"
        raise RunDirError(f"{directory.path} has no checkpoint to resume from: {found}; start the run again")
    state = load_run_state(checkpoint)
    expected = {field.name for field in fields(RunState)}
    if state.keys() != expected:
        raise RunDirError(
            f"{checkpoint} is of another version: its run state has {_names(state.keys() - expected)} too "
            f"many and lacks {_names(expected - state.keys())}; resume with the version that made it"
        )
    return Resume(checkpoint=checkpoint, state=RunState(**state)), problems
