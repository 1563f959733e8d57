"""Runs that only log, to real trackers, and what these wrote, read back."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from rl.config import Config
from rl.console import RunConsole
from rl.journal import Journal
from rl.run_dir import NEW_RUN, RunDir, RunState
from rl.tracking import Trackers, start_trackers

BLOCK_BYTES = 1 << 15
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class Logging:
    """A run's directory, screen, journal and trackers, with nothing that trains."""

    def __init__(
        self,
        path: Path,
        trackers: str,
        resumed: RunState = NEW_RUN,
        harm: Callable[[Path], object] = lambda path: None,
    ) -> None:
        """`harm` is done to the directory before the trackers start."""
        config = Config(trackers=trackers, resume=str(path) if resumed.step else "")
        self._screen = io.StringIO()
        self.directory = RunDir(path, resumed=bool(resumed.step))
        harm(path)
        console = RunConsole(config.num_steps, file=self._screen)
        self.trackers: Trackers = start_trackers(config, self.directory, console.say, resumed)
        self.journal = Journal(
            self.directory, config, console, decode=lambda ids: "", resumed=resumed, trackers=self.trackers
        )

    def steps(self, numbers: Sequence[int], offset: float = 0.0) -> None:
        for step in numbers:
            self.journal.step(step, {"policy/loss": step + offset, "rollout/reward_mean": 0.5})

    @property
    def warnings(self) -> list[str]:
        return [line for line in self._screen.getvalue().splitlines() if line.startswith("WARNING")]

    def finish(self) -> None:
        self.trackers.has_finished = True
        self.trackers.close()
        self.directory.close()

    @property
    def incidents(self) -> list[str]:
        """What incidents/ says of trackers."""
        files = sorted(self.directory.incidents.glob("tracker-*.jsonl"))
        return [json.loads(line)["what"] for file in files for line in file.read_text().splitlines()]


def tensorboard_of(path: Path) -> EventAccumulator:
    """All that TensorBoard would show of the run in `path`."""
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return events


@dataclass(frozen=True)
class WandbFile:
    """What one start of wandb kept for `wandb sync`: `code` is None where nobody said that the run ended."""

    id: str
    name: str
    project: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    code: int | None


def wandb_files(path: Path) -> list[WandbFile]:
    """Of each start of the run in `path`, in order."""
    return [_wandb_file(file) for file in sorted(path.glob("wandb/offline-run-*/*.wandb"))]


def _wandb_file(file: Path) -> WandbFile:
    records = [Record.FromString(data) for data in _log_records(file.read_bytes())]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    codes = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
    return WandbFile(
        id=run.run_id,
        name=run.display_name,
        project=run.project,
        config={item.key: json.loads(item.value_json) for item in run.config.update},
        rows=rows,
        code=codes[0] if codes else None,
    )


def _log_records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, which is wandb's: 7 bytes of its own, then blocks of 32 KiB."""
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        room = BLOCK_BYTES - at % BLOCK_BYTES
        if room < 7:  # no header fits: the block ends in zeros
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        at += 7 + length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield parts
