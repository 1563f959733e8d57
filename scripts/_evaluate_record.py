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
from scripts._evaluate_plan import EVALUATION
from scripts._evaluate_report import Comparison, Report

AGAINST = "against.json"
AGAINST_EPISODES = "against"
COMPARISON = "comparison.json"

MAX_BYTES = int(Config.max_record_mb * 1e6)
"""Of trajectories.jsonl, as of a run's by default; what comes after is left out, which is said."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """An evaluation, and the groups that it counts."""

    evaluation: Evaluation
    groups: Sequence[TrajectoryGroup]


def write(out: Path, sampled: Sampled, report: Report, *, against: Sequence[Sampled] = ()) -> list[Path]:
    """Write evaluation.json and the episodes into the folder `out`, and those of a sampled --against.

    Returns the folder whose episodes scripts.view is to show.
    """
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(out / EVALUATION, report.to_json())
    write_episodes(out, sampled)
    for other in against:
        atomic_write_json(out / AGAINST, Report.of(other.evaluation, None, report.ks).to_json())
        write_episodes(out / AGAINST_EPISODES, other)
    return [out]


def write_with_adapters(out: Path, sampled: Sequence[Sampled], comparison: Comparison) -> list[Path]:
    """Write comparison.json into `out`, and what is of one policy into a folder of its name.

    The first is the model alone, against which each adapter's evaluation.json is. Returns the folders.
    """
    alone, *_ = (each.evaluation for each in sampled)
    shown = []
    for each in sampled:
        other = None if each.evaluation is alone else alone
        report = Report.of(each.evaluation, other, comparison.ks)
        shown += write(out / each.evaluation.policy["name"], each, report)
    atomic_write_json(out / COMPARISON, comparison.to_json())
    return shown


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
