"""The episodes of an evaluation as files that scripts.view opens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rl.config import Config
from rl.durable import atomic_write_json
from rl.evaluation import Evaluation
from rl.machine import command_line
from rollout.record import Record, TrajectoryRecorder
from rollout.trajectory import TrajectoryGroup

MAX_BYTES = int(Config.max_record_mb * 1e6)
"""Of trajectories.jsonl, as of a run's by default; what comes after is left out, which is said."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """An evaluation, and the groups that it counts."""

    evaluation: Evaluation
    groups: Sequence[TrajectoryGroup]


def write_episodes(folder: Path, sampled: Sampled) -> None:
    """Write trajectories.jsonl into `folder`, and the config.json and manifest.json that viewing needs.

    Groups are numbered through, as every environment and level has its own first task.
    """
    evaluation = sampled.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    policy = dict(evaluation.policy)
    model = policy.get("model", policy["name"])
    atomic_write_json(folder / "config.json", {"model": model, **evaluation.settings})
    atomic_write_json(
        folder / "manifest.json",
        {
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command_line": command_line(),
            "policy": policy,
            "versions": dict(evaluation.versions),
        },
    )
    recorder = TrajectoryRecorder(folder / "trajectories.jsonl", max_bytes=MAX_BYTES)
    try:
        recorder.write(_records(sampled.groups))
    finally:
        recorder.close()


def _records(groups: Sequence[TrajectoryGroup]) -> Iterator[Record]:
    for number, group in enumerate(groups):
        for member, trajectory in enumerate(group.trajectories):
            yield Record(step=0, split="eval", group=number, member=member, trajectory=trajectory)
