"""The settings of a run that learns from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rl.config import Config
from rl.overrides import Count, NonNegative, Positive, Range
from rl.preference_learner import Preference
from rl.preference_rows import get_preference

NoiseShare = Annotated[float, Range(0, 0.499999)]


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(Config):
    """A Config whose `algorithm` is a row of rl/preference_rows.py.

    The knobs of policy-gradient rows are refused: none has an effect here.
    """

    algorithm: str = "dpo"
    """Row of rl/preference_rows.py: dpo, rpo, cdpo, robust, ipo, hinge, dpo_norm, simpo, kto or orpo."""
    beta: Positive | None = None
    """What a nat of the difference between the sides is worth."""
    label_smoothing: NoiseShare | None = None
    """The probability that a pair is the wrong way round."""
    average_log_prob: bool | None = None
    """Whether ipo averages over tokens instead of summing."""
    gamma_simpo: NonNegative | None = None
    """SimPO's margin, absolute; either this or gamma_beta_ratio."""
    gamma_beta_ratio: NonNegative | None = None
    """SimPO's margin as a multiple of beta."""
    desirable_weight: NonNegative | None = None
    """KTO's weight of the better trajectories."""
    undesirable_weight: NonNegative | None = None
    """KTO's weight of the worse trajectories."""
    orpo_lambda: NonNegative | None = None
    """ORPO's weight of the odds ratio beside the likelihood."""
    rpo_alpha: NonNegative | None = None
    """Weight of the likelihood of the chosen side, a token, beside the comparison."""
    max_pairs_per_group: Count = 4
    """Most pairs that one group gives: best with worst, second best with second worst, ..."""
    swap_pairs: bool = False
    """Learn that the worse is better: a control in which success must fall."""

    def make_algorithm(self) -> Preference:
        """The preference loss that this configuration names, with its knobs, and how pairs are made.

        Raises:
            ValueError: an unknown row, a knob without effect in it, or a knob of a policy-gradient row.
        """
        if self.overrides:
            raise ValueError(
                f"{', '.join(self.overrides)}: knobs of policy-gradient rows, which have no effect on "
                f"preference loss {self.algorithm!r}; leave them out"
            )
        loss = get_preference(
            self.algorithm,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            average_log_prob=self.average_log_prob,
            gamma=self.gamma_simpo,
            gamma_beta_ratio=self.gamma_beta_ratio,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            orpo_lambda=self.orpo_lambda,
            rpo_alpha=self.rpo_alpha,
        )
        if self.group_size == 1:
            raise ValueError("group_size = 1: a pair is two trajectories of one task; use at least 2")
        if self.micro_batch_tokens:
            raise ValueError(
                f"micro_batch_tokens = {self.micro_batch_tokens} has no effect on pairs, which go through "
                "the model in passes of micro_batch_size trajectories; leave it out"
            )
        return Preference(loss=loss, max_pairs_per_group=self.max_pairs_per_group, swap_pairs=self.swap_pairs)

    def describe_algorithm(self) -> str:
        row = self.make_algorithm()
        sides = "SWAPPED pairs" if row.swap_pairs else "pairs"
        loss = ", ".join(f"{knob} {value}" for knob, value in row.loss.knobs.items())
        return f"{row.loss.name}: {loss}; up to {row.max_pairs_per_group} {sides} a group"
