"""What a learner can minimise: the family of PolicyGradient, PreferenceLoss and Supervised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self


class Objective:
    """The defaults of an objective that needs the policy's log-probs and nothing else.

    `needs` names what the objective asks of a batch, `needs_for` what of it Learner.score must add before a
    step of so many updates. `critic` is none, head or separate.
    `entropy_gradient` says whether the loss differentiates the entropy, `uses_teacher` whether there is a
    teacher, `loads_teacher` whether that is a model of its own and not the policy itself, told `hint`, and
    `compares_distributions` whether the loss compares its whole distribution with the policy's, by the
    generalized JSD of `jsd_beta`; `uses_router_loss`, whether it balances a mixture's experts; `needs_log_z`,
    whether the size of the logits is part of it.
    `dynamic_sampling` asks the collector for other groups in place of those whose rewards are all equal.
    `least_group` scored members are what a group needs to be learned from.
    """

    __slots__ = ()

    critic = "none"
    dynamic_sampling = False
    hint = ""
    jsd_beta = 0.5
    least_group = 1

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def needs_for(self, num_updates: int) -> frozenset[str]:
        del num_updates
        return self.needs

    @property
    def entropy_gradient(self) -> bool:
        return False

    @property
    def uses_teacher(self) -> bool:
        return False

    @property
    def loads_teacher(self) -> bool:
        return self.uses_teacher and not self.hint

    @property
    def uses_router_loss(self) -> bool:
        return False

    @property
    def needs_log_z(self) -> bool:
        return False

    @property
    def compares_distributions(self) -> bool:
        return False

    def start(self) -> Any:
        """What a run steps with: the objective itself, or one that carries what a run learns besides."""
        return self

    def after_step(self, metrics: Mapping[str, float]) -> Self:
        """The objective of the next step, after one with these metrics."""
        del metrics
        return self

    def state(self) -> dict[str, Any]:
        """What it has learned from the steps so far, as JSON holds it exactly."""
        return {}

    def restored(self, state: Mapping[str, Any]) -> Self:
        """The objective that had this `state`."""
        del state
        return self
