"""Learning from pairs: the objective, the step, and the learner that makes its updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.batch import TrainBatch, make_batch
from rl.first_ratio import first_ratio_error
from rl.gates import gap_metrics
from rl.layout import PaddedLayout
from rl.learner import Learner
from rl.metrics import Metrics, batch_metrics, mean_metrics, rollout_metrics
from rl.numerics import MetricSums
from rl.objective import Objective
from rl.pairs import PairBatch, make_pairs
from rl.preferences import PreferenceLoss, reference_point
from rl.splitting import split_pairs
from rl.train import LearnerHandle, Observer, Rollouts
from rl.weight_sync import WeightSync


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference(Objective):
    """A preference loss, and how its pairs are made (rl/pairs.py)."""

    loss: PreferenceLoss
    max_pairs_per_group: int = 4
    swap_pairs: bool = False

    @property
    def name(self) -> str:
        return self.loss.name

    @property
    def needs(self) -> frozenset[str]:
        return self.loss.needs | {"old_logprobs"}

    def make_pairs(self, batch: TrainBatch) -> PairBatch:
        """The pairs of a scored batch."""
        return make_pairs(batch, max_pairs_per_group=self.max_pairs_per_group, swap=self.swap_pairs)


async def preference_step(
    rollouts: Rollouts,
    learner: LearnerHandle,
    algorithm: Preference,
    sync: WeightSync,
    observe: Observer,
    /,
    *,
    num_groups: int,
    num_minibatches: int,
) -> Metrics:
    """One step: sample, score, pair, update, publish."""
    groups = await rollouts.next_groups(num_groups)  # o_1..o_G ~ pi(. | q), scored r_1..r_G
    batch = make_batch(groups)
    batch = await learner.score(batch, algorithm.needs_for(num_minibatches))  # log pi_ref where it has one
    pairs = algorithm.make_pairs(batch)  # o_w > o_l
    updates = [await learner.update(minibatch) for minibatch in pairs.minibatches(num_minibatches)]
    synced = await sync.publish(learner, rollouts)
    observe(groups, batch)
    measured = rollout_metrics(groups) | batch_metrics(pairs.batch) | pairs.metrics | gap_metrics(batch)
    return measured | mean_metrics(updates) | synced


class PreferenceLearner(Learner):
    """A Learner whose updates are on pairs."""

    def update(self, minibatch: PairBatch) -> MetricSums:  # type: ignore[override]
        """One optimizer update; the loss is the mean over the minibatch's pairs, however it is split.

        micro_batch_size counts trajectories: half as many pairs. A minibatch without pairs moves the schedule
        and nothing else: neither weights nor Adam's moments nor a loss scale.
        """
        objective: Preference = self.spec.algorithm
        self.optimizer.zero_grad()
        parts: list[MetricSums] = []
        anchor = anchor_of(minibatch, objective)
        micro_batches = list(minibatch.micro_batches(max(1, self.spec.micro_batch_size // 2)))
        num_passes = self.backend.largest(len(micro_batches))
        for micro_batch in micro_batches:
            layout = micro_batch.batch.padded(layout=self.layout).to(self.device)
            logprobs = self.evaluate(layout, wants_entropy=False).logprobs
            loss, sums = pair_loss(
                objective.loss, logprobs, layout, micro_batch, num_pairs=minibatch.num_pairs, z0=anchor
            )
            self.optimizer.backward(loss)
            if self.is_first_update:
                sums |= first_ratio_error(logprobs, layout)
            parts.append(sums)
        return self.finish(parts, minibatch, num_passes)

    @staticmethod
    def split(minibatch: PairBatch, num_ranks: int, algorithm: Preference) -> list[PairBatch]:
        """One part a rank, each with what the loss asks of the whole minibatch."""
        return split_pairs(minibatch, num_ranks, z0=anchor_of(minibatch, algorithm))


def anchor_of(minibatch: PairBatch, objective: Preference) -> float:
    """KTO's z0 of the whole update: the samples are the policy's own, so their mean h is its KL."""
    if minibatch.totals is not None:
        return minibatch.totals.z0
    if objective.loss.loss_type != "kto":
        return 0.0
    layout = minibatch.batch.padded()
    assert layout.old_logprobs is not None
    assert layout.ref_logprobs is not None
    rows = [by_row(x, minibatch) for x in (layout.old_logprobs, layout.ref_logprobs, layout.loss_mask)]
    return float(reference_point(*rows))


def pair_loss(
    loss: PreferenceLoss,
    logprobs: Tensor,
    layout: PaddedLayout,
    pairs: PairBatch,
    *,
    num_pairs: int,
    z0: float = 0.0,
) -> tuple[Tensor, MetricSums]:
    """The loss of P pairs, from the log-probs (S, T) of their samples; see PreferenceLoss.

    Args:
        num_pairs: of the whole optimizer step, the denominator; KTO counts both sides of each.
        z0: KTO's reference point.
    """
    size = len(pairs.pairs)
    rows, mask = by_row(logprobs, pairs), by_row(layout.loss_mask, pairs)
    ref = None
    if not loss.reference_free:
        assert layout.ref_logprobs is not None
        ref = by_row(layout.ref_logprobs, pairs)
    if loss.loss_type == "kto":
        assert ref is not None
        desirable = torch.arange(2 * size, device=rows.device) < size
        return loss.unpaired_loss(rows, ref, mask, desirable, z0, num_rows=2 * num_pairs)
    return loss.loss(
        rows[:size],
        rows[size:],
        mask[:size],
        mask[size:],
        *(None, None) if ref is None else (ref[:size], ref[size:]),
        num_pairs=num_pairs,
    )


def by_row(x: Tensor, pairs: PairBatch) -> Tensor:
    """What belongs to samples (S, T) as one row a side, (2 P, K T): the chosen, then the rejected; 0 or false
    where a side has fewer than K samples.
    """
    rows, slots, most = pairs.places
    length = x.shape[1]
    empty = torch.zeros((2 * len(pairs.pairs), most, length), dtype=x.dtype, device=x.device)
    index = (torch.from_numpy(rows).to(x.device), torch.from_numpy(slots).to(x.device))
    return empty.index_put(index, x).reshape(len(empty), most * length)
