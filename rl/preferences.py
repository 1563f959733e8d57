"""Preference losses: DPO and its relatives on pairs of completions, KTO on single ones, and reward models.

h is a completion's Σ (log π - log π_ref) over its tokens with mask 1, Σ log π where a loss has no reference,
and their mean where a loss averages. Per-token differences are float32, sums float64: at 32,768 tokens,
float32 sums are off by more than can separate two completions. Multi-turn pairs differ in their masks alone.

A pair (KTO: row) without trained tokens takes no part. With a NaN or infinite trained token it leaves the
loss whole, as a sum without the token would call its ratio 1; it stays in the denominator, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from envs.names import unknown_name
from rl.distributions import log_odds
from rl.numerics import MetricSums, mean_share, on_host, select, sum_share

LossType = Literal["sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "simpo", "orpo", "kto"]
USED_BY: dict[str, tuple[LossType, ...]] = {
    "loss_type": get_args(LossType),
    "beta": ("sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "simpo", "kto"),
    "label_smoothing": ("sigmoid", "sigmoid_norm", "robust", "simpo"),
    "average_log_prob": ("ipo",),
    "gamma": ("simpo",),
    "gamma_beta_ratio": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "orpo_lambda": ("orpo",),
    "rpo_alpha": ("sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "simpo"),
}
"""The loss types in which each knob has an effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """One preference loss; knobs carry TRL's names.

    loss_type: its formula, see `_per_pair`; kto has `unpaired_loss`.
    beta: what a nat of d is worth, above 0.
    label_smoothing: the probability ε that a label is wrong, in [0, 0.5).
    average_log_prob: whether ipo averages (TRL, AReaL) or sums (OpenRLHF) over tokens.
    gamma, gamma_beta_ratio: simpo's margin: absolute (TRL), or as a multiple of beta (its authors).
    desirable_weight, undesirable_weight: kto's λ_D and λ_U.
    rpo_alpha: weight of the chosen side's mean -log π a token beside the comparison (arXiv 2404.19733): it
        keeps the likelihood of the chosen from falling with that of the rejected; 0 is off.
    orpo_lambda: weight of the odds ratio beside the likelihood; TRL calls it beta.
    """

    name: str
    loss_type: LossType = "sigmoid"
    beta: float = 0.1  # of TRL, OpenRLHF and tinker
    label_smoothing: float = 0.0
    average_log_prob: bool = True
    gamma: float | None = None
    gamma_beta_ratio: float | None = None
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    orpo_lambda: float = 0.1
    rpo_alpha: float = 0.0

    def __post_init__(self) -> None:
        wrong = list(_problems(self))
        if wrong:
            raise ValueError(f"preference loss {self.name!r}: " + "; ".join(wrong))

    @property
    def knobs(self) -> dict[str, Any]:
        """The knobs that have an effect in this loss."""
        used = (knob for knob, types in USED_BY.items() if self.loss_type in types)
        return {knob: getattr(self, knob) for knob in used if getattr(self, knob) is not None}

    @property
    def reference_free(self) -> bool:
        """Whether the loss has no reference policy."""
        return self.loss_type in ("simpo", "orpo")

    @property
    def needs(self) -> frozenset[str]:
        """What the learner must add to a batch before the loss."""
        return frozenset() if self.reference_free else frozenset({"ref_logprobs"})

    def loss(
        self,
        chosen_logprobs: Tensor,
        rejected_logprobs: Tensor,
        chosen_mask: Tensor,
        rejected_mask: Tensor,
        ref_chosen: Tensor | None = None,
        ref_rejected: Tensor | None = None,
        num_pairs: int | None = None,
    ) -> tuple[Tensor, MetricSums]:
        """The mean over pairs, a float64 scalar (0 with a graph without pairs), and shares of the metrics.

        Args:
            chosen_logprobs: of the policy, with gradient; everything chosen is (B, T), rejected (B, T').
            chosen_mask: 1 = sampled by the policy; what stands at 0 does not matter.
            ref_chosen: of the reference; None where the loss has none.
            num_pairs: pairs with trained tokens in the whole optimizer step (None: in this call), so that
                micro-batches add up.
        """
        if self.loss_type == "kto":
            raise ValueError(f"preference loss {self.name!r} compares no pairs: call unpaired_loss")
        chosen = self._rows("chosen", chosen_logprobs, ref_chosen, chosen_mask)
        rejected = self._rows("rejected", rejected_logprobs, ref_rejected, rejected_mask)
        _check_shape("rejected_mask", rejected_mask, (len(chosen_mask), rejected_mask.shape[-1]))
        counts = chosen.counts & rejected.counts
        kept = counts & chosen.finite & rejected.finite
        per_pair = self._per_pair(chosen.h, rejected.h)
        if self.rpo_alpha:
            per_pair = per_pair - self.rpo_alpha * chosen.logp / chosen_mask.sum(1).clamp(min=1)
        loss, metrics = _mean(per_pair, counts, kept, num_pairs)
        metrics |= {
            "preference/margin": mean_share(chosen.log_ratio - rejected.log_ratio, kept),
            "preference/reward_margin": mean_share(self._reward(chosen) - self._reward(rejected), kept),
            "preference/accuracy": mean_share(chosen.log_ratio > rejected.log_ratio, kept),
            "preference/reward_accuracy": mean_share(chosen.h > rejected.h, kept),
            **self._side_metrics("chosen", chosen, kept),
            **self._side_metrics("rejected", rejected, kept),
        }
        return loss, on_host(metrics)

    def unpaired_loss(
        self,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        loss_mask: Tensor,
        desirable: Tensor,
        z0: float | Tensor,
        num_rows: int | None = None,
    ) -> tuple[Tensor, MetricSums]:
        """KTO (arXiv 2402.01306): the mean of λ_D (1 - σ(β (h - z0))) and λ_U (1 - σ(β (z0 - h))) over rows.

        Args:
            logprobs, ref_logprobs, loss_mask: (B, T), as in `loss`.
            desirable: (B,) bool, each row's label; the metrics call such rows chosen.
            z0: the KL to the reference (`reference_point`) of the whole optimizer step; below 0 it is 0.
            num_rows: rows with trained tokens in the whole optimizer step (None: in this call).
        """
        if self.loss_type != "kto":
            raise ValueError(f"preference loss {self.name!r} compares pairs: call loss")
        rows = self._rows("unpaired", logprobs, ref_logprobs, loss_mask)
        _check_shape("desirable", desirable, loss_mask.shape[:1])
        kept, desirable = rows.counts & rows.finite, desirable.bool()
        reference = torch.as_tensor(z0, dtype=torch.float64, device=logprobs.device).detach().clamp(min=0.0)
        wrong = (self.beta * torch.where(desirable, reference - rows.h, rows.h - reference)).sigmoid()
        weighted = torch.where(desirable, self.desirable_weight * wrong, self.undesirable_weight * wrong)
        loss, metrics = _mean(weighted, rows.counts, kept, num_rows)
        metrics |= self._side_metrics("chosen", rows, kept & desirable)
        metrics |= self._side_metrics("rejected", rows, kept & ~desirable)
        return loss, on_host(metrics)

    def _per_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss (B,) of pairs with these h."""
        logit, noise = self.beta * (chosen - rejected), self.label_smoothing
        margin = self.gamma if self.gamma is not None else self.beta * (self.gamma_beta_ratio or 0.0)
        return {
            "sigmoid": lambda: _smoothed(logit, noise),
            "sigmoid_norm": lambda: _smoothed(logit, noise),
            # Its mean over labels flipped with probability ε is the loss without noise.
            "robust": lambda: _smoothed(logit, -noise / (1 - 2 * noise)),
            "ipo": lambda: (chosen - rejected - 1 / (2 * self.beta)).square(),
            "hinge": lambda: torch.relu(1 - logit),
            "simpo": lambda: _smoothed(logit - margin, noise),
            "orpo": lambda: -chosen - self.orpo_lambda * logsigmoid(log_odds(chosen) - log_odds(rejected)),
        }[self.loss_type]()

    def _rows(self, side: str, logprobs: Tensor, ref: Tensor | None, mask: Tensor) -> RowSums:
        if self.reference_free != (ref is None):
            what = "needs ref_logprobs" if ref is None else "has no reference: leave its log-probs out"
            raise ValueError(f"preference loss {self.name!r} {what} ({side} rows)")
        averages = {"ipo": self.average_log_prob, "sigmoid_norm": True, "simpo": True, "orpo": True}
        return row_sums(logprobs, ref, mask, averages=averages.get(self.loss_type, False))

    def _reward(self, rows: RowSums) -> Tensor:
        return (self.orpo_lambda if self.loss_type == "orpo" else self.beta) * rows.h

    def _side_metrics(self, side: str, rows: RowSums, kept: Tensor) -> MetricSums:
        drift = {} if self.reference_free else {"drift": rows.log_ratio}
        per_row = {"logp": rows.logp, "reward": self._reward(rows), **drift}
        return {f"preference/{side}_{name}": mean_share(x, kept) for name, x in per_row.items()}


class RowSums(NamedTuple):
    """Of B completions, (B,): Σ log π, Σ (log π - log π_ref), h, has a trained token, all are finite."""

    logp: Tensor
    log_ratio: Tensor
    h: Tensor
    counts: Tensor
    finite: Tensor


def row_sums(logprobs: Tensor, ref: Tensor | None, loss_mask: Tensor, *, averages: bool) -> RowSums:
    """Sums in float64 over the finite trained tokens of rows (B, T); h averages where `averages`."""
    ref = torch.zeros_like(logprobs) if ref is None else ref.detach()
    _check_shape("logprobs", logprobs, loss_mask.shape)
    _check_shape("ref_logprobs", ref, loss_mask.shape)
    mask = loss_mask.bool()
    known = mask & logprobs.isfinite() & ref.isfinite()
    policy = select(known, logprobs)
    difference = policy - select(known, ref)
    log_ratio = difference.double().sum(1)
    h = log_ratio / mask.sum(1).clamp(min=1) if averages else log_ratio
    return RowSums(policy.double().sum(1), log_ratio, h, mask.any(1), (known == mask).all(1))


def reference_point(logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """KTO's z0 = max(0, mean h), a constant, of completions (B, T) paired with prompts of other rows."""
    rows = row_sums(logprobs.detach(), ref_logprobs, loss_mask, averages=False)
    h = rows.h[rows.counts & rows.finite]
    return (h.sum() / max(len(h), 1)).clamp(min=0.0)


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margin: float | Tensor | None = None,
    num_pairs: int | None = None,
) -> Tensor:
    """The mean of -log σ(chosen - rejected - margin), a reward model's loss: a float64 scalar.

    Scores (B,); margin: by how much the chosen should lead; num_pairs: of the whole step (None: B).
    """
    _check_shape("rejected_scores", rejected_scores, chosen_scores.shape)
    lead = chosen_scores.double() - rejected_scores.double() - (0.0 if margin is None else margin)
    return -logsigmoid(lead).sum() / max(len(lead) if num_pairs is None else num_pairs, 1)


def _mean(values: Tensor, counts: Tensor, kept: Tensor, total: int | None) -> tuple[Tensor, MetricSums]:
    """Σ of values (B,) where kept / total, or the number of `counts`; 0 with a graph where that is 0."""
    loss = select(kept, values).sum() / max(int(counts.sum()) if total is None else total, 1)
    nonfinite = mean_share(counts & ~kept, counts)
    return loss, {"preference/loss": sum_share(loss), "preference/nonfinite_frac": nonfinite}


def _check_shape(name: str, x: Tensor, expected: Sequence[int]) -> None:
    if x.shape != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {tuple(expected)}")


def _smoothed(logit: Tensor, noise: float) -> Tensor:
    return -(1 - noise) * logsigmoid(logit) - noise * logsigmoid(-logit)


def _problems(row: PreferenceLoss) -> Iterator[str]:
    if row.loss_type not in get_args(LossType):
        yield unknown_name("loss_type", row.loss_type, get_args(LossType))
    if not (isfinite(row.beta) and row.beta > 0):
        yield f"beta = {row.beta}: expected more than 0"
    if not 0 <= row.label_smoothing < 0.5:
        yield f"label_smoothing = {row.label_smoothing}: expected 0 to below 0.5, where labels say nothing"
    for knob in (
        "gamma",
        "gamma_beta_ratio",
        "desirable_weight",
        "undesirable_weight",
        "orpo_lambda",
        "rpo_alpha",
    ):
        value = getattr(row, knob)
        if value is not None and not (isfinite(value) and value >= 0):
            yield f"{knob} = {value}: expected at least 0"
    if row.loss_type == "simpo" and (row.gamma is None) == (row.gamma_beta_ratio is None):
        yield "simpo takes exactly one of gamma (absolute) and gamma_beta_ratio (a multiple of beta)"


PREFERENCE_METRICS = {
    "preference/pairs": "pairs of a better and a worse trajectory, count",
    "preference/silent_groups": "share of groups that give no pair: all rewards equal, or nothing sampled",
    "preference/loss": "the loss that was minimised",
    "preference/margin": "mean of chosen less rejected Σ (log π - log π_ref), or Σ log π; nats",
    "preference/accuracy": "share of pairs in which that difference is above 0",
    "preference/reward_margin": "mean of chosen less rejected implicit reward",
    "preference/reward_accuracy": "share of pairs in which that difference is above 0",
    **{
        f"preference/{side}_{name}": meaning.format(side=side)
        for side in ("chosen", "rejected")
        for name, meaning in {
            "logp": "mean Σ log π of the {side} completions, nats",
            "drift": "mean Σ (log π - log π_ref) of the {side} completions, nats",
            "reward": "mean implicit reward of the {side} completions: beta (orpo: orpo_lambda) times h",
        }.items()
    },
    "preference/nonfinite_frac": "share of pairs, or rows, left out because a token was NaN or infinite",
}
"""Every metric of a preference loss; for kto, desirable rows are chosen and undesirable ones rejected."""
