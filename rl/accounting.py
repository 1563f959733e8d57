"""Where every sampled token and every trajectory went, by reason; and the check that none is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RETRIED = "retried"
"""Reason of what an earlier attempt sampled (rollout/retry.py): spent, and in no trajectory's turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Where every sampled token went: num_sampled = num_trained + num_masked + sum(dropped.values()).

    `dropped` counts sampled tokens, and `dropped_trajectories` trajectories, by reason: error/<kind> (the
    world failed), unscored/<kind> (the reward failed; unscored where it gave none on purpose),
    nonfinite_score, retried (earlier attempts, each of which counts as a trajectory), small_group (fewer than
    min_group scored members), uninformative_group (all rewards equal, or one member), not_resampled
    (GRPO-RoC), unpaired. Masked tokens belong to trajectories that count in the statistics and are not
    trained on. `num_trajectories` are those that came back: without the earlier attempts.
    """

    num_trajectories: int
    num_sampled: int
    num_trained: int
    num_masked: int
    dropped: Mapping[str, int]
    dropped_trajectories: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.num_sampled != self.num_trained + self.num_masked + sum(self.dropped.values()):
            raise ValueError(f"sampled tokens do not add up: {self}")


FAMILIES = {"tokens": "dropped_tokens/", "trajectories": "dropped/"}
"""What is accounted for, and the metrics that say by reason what was dropped of it."""


def accounts_problem(metrics: Mapping[str, float]) -> str:
    """What of a step's tokens or trajectories is nowhere, or twice, in numbers; "" when all add up.

    Three counts of their own are compared: what the collector received, what is under the loss masks, and
    what every filter says that it took. A step that sampled nothing has nothing to account for.
    """
    if "tokens/sampled" not in metrics:
        return ""
    for unit, family in FAMILIES.items():
        reasons = {name: metrics[name] for name in metrics if name.startswith(family)}
        parts = {
            name: metrics[name] for name in (f"{unit}/trained", f"{unit}/masked", f"rollout/dropped_{unit}")
        } | reasons
        received = metrics[f"rollout/sampled_{unit}"]
        if received != sum(parts.values()):
            told = " + ".join(f"{name} {value:.0f}" for name, value in parts.items())
            return (
                f"{received:.0f} {unit} were sampled, and {told} = {sum(parts.values()):.0f}: a filter takes "
                "or keeps what it does not count. Report this as a bug, with the run's trajectories.jsonl"
            )
    return ""
