"""Supervised fine-tuning: the likelihood of what somebody said, on the masks that rollouts have."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from torch import Tensor

from envs.messages import Message
from rl.batch import Accounting, LossCounts, TrainBatch
from rl.layout import PaddedLayout
from rl.metrics import Metrics, mean_metrics
from rl.numerics import MetricSums, mean_share, on_host, select, sum_share
from rl.objective import Objective
from rl.outputs import TokenOutputs
from rl.samples import TrainSample, trajectory_samples
from rl.train import LearnerHandle, Observer, Rollouts
from rl.weight_sync import WeightSync
from rollout.renderer import ChatMLRenderer
from rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised(Objective):
    """The mean of -log π over all trained tokens of an optimizer step."""

    name: str = "sft"

    def loss(
        self,
        outputs: TokenOutputs,
        layout: PaddedLayout,
        counts: LossCounts,
    ) -> tuple[Tensor, MetricSums]:
        """A micro-batch's part of the loss; arguments as in PolicyGradient.loss.

        A token whose log-prob is not finite leaves the loss, stays in the denominator and is counted.
        """
        kept = layout.loss_mask & outputs.logprobs.isfinite()
        measured = kept & outputs.entropy.isfinite()
        per_token = -select(kept, outputs.logprobs)
        loss = per_token.double().sum() / max(counts.num_tokens, 1)
        metrics = {
            "sft/loss": sum_share(loss),
            "policy/entropy": mean_share(select(measured, outputs.entropy), measured),
            "policy/nonfinite_token_frac": mean_share(layout.loss_mask & ~kept, layout.loss_mask),
        }
        return loss, on_host(metrics)


class SupervisedStep:
    """One step of fine-tuning on fixed samples; their order is a pure function of (seed, epoch).

    Each epoch sees every sample once, in an order of its own; the last batch of an epoch is filled up from
    the next.
    """

    def __init__(self, samples: Sequence[TrainSample], *, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = tuple(samples), batch_size, seed
        self.step = 0

    async def __call__(
        self,
        rollouts: Rollouts,
        learner: LearnerHandle,
        algorithm: Supervised,
        sync: WeightSync,
        observe: Observer,
        /,
        *,
        num_groups: int,
        num_minibatches: int,
    ) -> Metrics:
        """One step: take, update, publish. `num_groups` has no part in it: batch_size says how many."""
        batch = supervised_batch(self.batch(self.step))
        self.step += 1
        updates = [await learner.update(minibatch) for minibatch in batch.minibatches(num_minibatches)]
        synced = await sync.publish(learner, rollouts)
        observe([], batch)
        counted = {"tokens/trained": float(batch.counts.num_tokens)}
        return mean_metrics(updates) | counted | synced

    def skip(self, num_steps: int) -> None:
        """Go on after so many steps."""
        self.step = num_steps

    def batch(self, step: int) -> list[TrainSample]:
        """The samples of step `step` (from 0)."""
        first, size = step * self.batch_size, len(self.samples)
        epochs = range(first // size, ceil((first + self.batch_size) / size))
        order = [place for epoch in epochs for place in self._order(epoch)]
        start = first - epochs.start * size
        return [self.samples[place] for place in order[start : start + self.batch_size]]

    def _order(self, epoch: int) -> list[int]:
        places = list(range(len(self.samples)))
        random.Random(f"sft/{self.seed}/{epoch}").shuffle(places)
        return places


def supervised_batch(samples: Sequence[TrainSample]) -> TrainBatch:
    """Samples as a batch in which each is a trajectory of its own, without a reward (0)."""
    lengths = np.array([int(sample.loss_mask.sum()) for sample in samples], np.int64)
    total = int(lengths.sum())
    return TrainBatch(
        samples=tuple(samples),
        trajectory_ids=tuple(sample.trajectory_id for sample in samples),
        group_ids=np.arange(len(samples)),
        rewards=np.zeros(len(samples)),
        lengths=lengths,
        truncated=np.zeros(len(samples), np.bool_),
        accounting=Accounting(
            num_trajectories=len(samples),
            num_sampled=total,
            num_trained=total,
            num_masked=0,
            dropped={},
            dropped_trajectories={},
        ),
    )


def conversation_sample(messages: Sequence[Message], renderer: ChatMLRenderer, *, name: str) -> TrainSample:
    """A conversation as a rollout would have sampled it: what the assistant says is trained, end token too.

    Assistant messages are text: a call stands in them as the policy writes it.

    Raises:
        ValueError: no assistant message, or one that opens the conversation.

    Example, prompt P, said A0, tool reply E, said A1; A0 and A1 end with <|im_end|>:
        token_ids = P           + A0           + E           + A1
        loss_mask = [0]*len(P)  + [1]*len(A0)  + [0]*len(E)  + [1]*len(A1)
    """
    ids: list[int] = []
    mask: list[bool] = []
    context: list[Message] = []
    for entry in messages:
        if entry.role != "assistant":
            context.append(entry)
            continue
        if not ids and not context:
            raise ValueError(f"{name}: it opens with an assistant message; expected a system or user message")
        prompt = renderer.render_continuation(context, closed=True) if ids else renderer.render(context)
        completion = renderer.completion_ids(entry.text)
        ids += [*prompt, *completion]
        mask += [False] * len(prompt) + [True] * len(completion)
        context = []
    if not ids:
        raise ValueError(f"{name}: no assistant message, so there is nothing to learn; expected at least one")
    return TrainSample(
        token_ids=np.array(ids, np.int64),
        loss_mask=np.array(mask, np.bool_),
        rollout_logprobs=np.full(len(ids), np.nan, np.float32),
        versions=np.full(len(ids), -1, np.int64),
        turn_ids=np.where(mask, np.cumsum(np.diff(mask, prepend=False) & mask) - 1, -1),
        trajectory_id=name,
        group_id=0,
        env="",
        weight=1.0,
    )


def recorded_samples(trajectories: Iterable[Trajectory], *, min_score: float) -> list[TrainSample]:
    """The sampled ids of recorded trajectories whose score is at least `min_score`, exactly as they were."""
    chosen = (t for t in trajectories if t.error is None and (t.score.value or 0.0) >= min_score)
    samples = (sample for trajectory in chosen for sample in trajectory_samples(trajectory, 0))
    # Likelihood of the whole distribution, whatever the run that recorded them could draw.
    return [replace(sample, kept_ids=None) for sample in samples]
