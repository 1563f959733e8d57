"""M11: what a token of a trajectory costs on its way to the learner's process, in bytes."""

from __future__ import annotations

import argparse
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.benching.report import Figure, Measurement
from scripts.benching.workload import Case, make_batch

if TYPE_CHECKING:
    # They import torch, which other subjects of the bench do not need.
    from rl.batch import TrainBatch
    from rl.transport import PackedBatch

TRAJECTORIES, PROMPT, COMPLETION = 64, 256, 768
TARGET = 9.0


def add_options(parser: argparse.ArgumentParser) -> None:
    del parser


def trajectories(count: int = TRAJECTORIES) -> TrainBatch:
    """Trajectories of 1,024 tokens in groups of eight with a common prompt, as `make_batch` gives them."""
    from scripts.benching.train_batches import to_train_batch

    case = Case(name="bytes", prompt_len=PROMPT, completion_len=COMPLETION, num_prompts=count // 8)
    batch = to_train_batch(make_batch(case))
    samples = tuple(
        replace(sample, rollout_logprobs=_noise(sample.loss_mask, row))
        for row, sample in enumerate(batch.samples)
    )
    return replace(batch, samples=samples, advantages=None)


def _noise(mask: np.ndarray, seed: int) -> np.ndarray:
    """Log-probs, no two of them equal: runs must not make them small."""
    drawn = -np.random.default_rng(seed).random(len(mask), np.float32)
    return np.where(mask, drawn, np.float32(np.nan))


def parts_of(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """What Ray sends of a value: a pickle, and the arrays beside it."""
    from ray.cloudpickle.cloudpickle import dumps

    buffers: list[pickle.PickleBuffer] = []
    return dumps(value, protocol=5, buffer_callback=buffers.append), buffers


def bytes_of(value: Any) -> int:
    inband, buffers = parts_of(value)
    return len(inband) + sum(buffer.raw().nbytes for buffer in buffers)


def measure(options: argparse.Namespace) -> list[Measurement]:
    from rl.transport import crossing, pack

    del options
    batch = trajectories()
    num_tokens = sum(len(sample.token_ids) for sample in batch.samples)
    weighed = replace(
        batch, advantages=tuple(np.full(len(s.token_ids), 0.5, np.float32) for s in batch.samples)
    )
    scored = replace(
        weighed,
        old_logprobs=tuple(np.where(s.loss_mask, s.rollout_logprobs, np.float32(0)) for s in batch.samples),
    )
    subject = f"bytes: M11, {TRAJECTORIES} trajectories of {PROMPT + COMPLETION:,} tokens, eight a prompt"
    if any(a.token_ids.tobytes() != b.token_ids.tobytes() for a, b in _pairs(batch)):
        return [Measurement(subject=subject, figures=(), void="other token ids come back than were sent")]
    figures = [
        Figure(name="a TrainBatch as it is, a token", value=bytes_of(batch) / num_tokens, unit="B"),
        Figure(
            name="to the learner, a token",
            value=bytes_of(crossing(batch)) / num_tokens,
            unit="B",
            target=TARGET,
            detail="8.13 where every token is trained and none shared",
        ),
        Figure(
            name="to a step's only update, a token",
            value=bytes_of(crossing(weighed)) / num_tokens,
            unit="B",
            detail="with advantages",
        ),
        Figure(
            name="to one of several updates, a token",
            value=bytes_of(crossing(scored)) / num_tokens,
            unit="B",
            detail="with advantages and the learner's own log-probs",
        ),
        Figure(name=f"objects for {TRAJECTORIES} trajectories", value=1, target=1, detail="an argument each"),
        Figure(
            name="arrays that are copied before they are read",
            value=_copied(pack(batch)),
            target=0,
            detail="of those that were sent; ids are widened to int64 for torch after that",
        ),
    ]
    return [Measurement(subject=subject, figures=figures)]


def _pairs(batch: TrainBatch) -> Any:
    from rl.transport import pack, unpack

    return zip(unpack(pack(batch)).samples, batch.samples, strict=True)


def _copied(packed: PackedBatch) -> int:
    """How many of the large arrays do not lie in the buffers that were received."""
    inband, buffers = parts_of(packed)
    received = [bytes(buffer.raw()) for buffer in buffers]
    read = pickle.loads(inband, buffers=received)
    arrays = [read.token_ids, read.masks, read.columns["rollout_logprobs"].inside.values]
    views = [np.frombuffer(buffer, np.uint8) for buffer in received]
    return sum(not any(np.shares_memory(array, view) for view in views) for array in arrays)
