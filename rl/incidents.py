"""What is kept of what went wrong: the batch of an update that was not applied, and lines in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rl.batch import TrainBatch
from rl.durable import atomic_folder, atomic_write_json
from rl.numerics import MetricSums, metric_values
from rollout.jsonl import JsonlWriter


def save_incident(folder: Path, minibatch: Any, *, number: int, metrics: MetricSums) -> Path:
    """Keep optimizer update `number`'s batch in a folder of its own, whole or not at all.

    batch.npz holds each sample's arrays by name and row, metrics.json the update's numbers (a NaN as null).
    """
    path = folder / f"update_{number:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    batch: TrainBatch = getattr(minibatch, "batch", minibatch)
    with atomic_folder(path) as temporary:
        np.savez(temporary / "batch.npz", allow_pickle=False, **batch_arrays(batch))
        atomic_write_json(temporary / "metrics.json", finite(metric_values(metrics)))
    return path


def note_incident(folder: Path, name: str, what: str) -> None:
    """Add one line, {"at", "what"}, to `folder`/<name>.jsonl; on disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    with JsonlWriter(folder / f"{name}.jsonl") as file:
        file.append([{"at": datetime.now(UTC).isoformat(timespec="seconds"), "what": what}])


def batch_arrays(batch: TrainBatch) -> dict[str, np.ndarray]:
    """A batch as named arrays: rewards and groups, and for each sample i `i/<array>` (T,)."""
    arrays = {
        "rewards": batch.rewards,
        "group_ids": batch.group_ids,
        "trajectory_ids": np.array(batch.trajectory_ids),
    }
    for row, sample in enumerate(batch.samples):
        own = {
            name: getattr(sample, name) for name in ("token_ids", "loss_mask", "rollout_logprobs", "versions")
        }
        if sample.kept_ids is not None:
            own["kept_ids"] = sample.kept_ids
        own |= {name: values[row] for name, values in batch.token_arrays.items()}
        own["trajectory_id"] = np.array(sample.trajectory_id)
        arrays |= {f"{row}/{name}": array for name, array in own.items()}
    return arrays


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which has no NaN."""
    return {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}
