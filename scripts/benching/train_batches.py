"""A workload's batch as the TrainBatch that a run would hand to the learner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rl.accounting import Accounting
from rl.batch import TrainBatch
from rl.samples import TrainSample, by_turn
from scripts.benching.made_model import group_advantages
from scripts.benching.workload import Batch


def to_train_batch(batch: Batch) -> TrainBatch:
    """One sample a completion, its advantage on every token; log-probs of an engine are there, and are 0."""
    samples = [
        _sample(prompt, completion, row, row // batch.group_size)
        for row, (prompt, completion) in enumerate(batch.pairs)
    ]
    num_samples, num_tokens = len(samples), batch.num_trained
    advantages = zip(samples, group_advantages(batch), strict=True)
    return TrainBatch(
        samples=tuple(samples),
        trajectory_ids=tuple(sample.trajectory_id for sample in samples),
        group_ids=np.arange(num_samples) // batch.group_size,
        rewards=np.array(batch.rewards, np.float64),
        lengths=np.array([len(completion) for completion in batch.completions], np.int64),
        truncated=np.zeros(num_samples, np.bool_),
        accounting=Accounting(
            num_trajectories=num_samples,
            num_sampled=num_tokens,
            num_trained=num_tokens,
            num_masked=0,
            dropped={},
            dropped_trajectories={},
        ),
        advantages=tuple(np.full(len(sample.token_ids), value, np.float32) for sample, value in advantages),
    )


def _sample(prompt: list[int], completion: list[int], row: int, group: int) -> TrainSample:
    ids = np.array([*prompt, *completion], np.int64)
    mask = np.arange(len(ids)) >= len(prompt)
    return TrainSample(
        token_ids=ids,
        loss_mask=mask,
        rollout_logprobs=np.where(mask, np.float32(0), np.float32(np.nan)),
        versions=np.where(mask, 0, -1),
        turn_ids=np.where(mask, 0, -1),
        trajectory_id=f"{group}-{row}",
        group_id=group,
        env="bench",
        weight=1.0,
    )


def by_turns(batch: TrainBatch, num_turns: int) -> TrainBatch:
    """The batch with each completion cut into so many turns, every turn a sample of its own.

    A turn's sample repeats all that stood before it: what a learner without a trie computes again.
    """
    cut = []
    for sample in batch.samples:
        places = np.flatnonzero(sample.loss_mask)
        turns = sample.turn_ids.copy()
        turns[places] = np.arange(len(places)) * num_turns // len(places)
        cut.append(replace(sample, turn_ids=turns))
    parts = [(row, part) for row, sample in enumerate(cut) for part in by_turn(sample)]
    arrays = {
        name: tuple(values[row][: len(part.token_ids)] for row, part in parts)
        for name, values in batch.token_arrays.items()
    }
    return replace(batch, samples=tuple(part for _, part in parts), **arrays)
