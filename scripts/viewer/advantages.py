"""The advantages of records that are older than advantages in records: computed again from the rewards.

Exact where the advantage is a function of the rewards alone, and of trajectories that can all still be read.
Where one is missing, and where it also takes a critic, a teacher, a reference policy, earlier steps or a
user's own code, there is none to show, and the reason is said.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rollout.record import Record
from rollout.trajectory import TrajectoryGroup
from scripts.viewer.index import Row, TrajectoryIndex

Advantages = dict[str, dict[int, list[float]]]
"""Trajectory id -> turn -> one number a sampled token; what is not trained on is absent."""

GROUP_ESTIMATORS = frozenset(
    {
        "reinforce",
        "dr_grpo",
        "grpo",
        "rloo",
        "grpo_passk",
        "maxrl",
        "opmd",
        "opo",
        "mt_grpo",
        "gigpo",
        "gigpo_std",
    }
)
"""Estimators that look at a group alone; all others look at the whole step."""


class NoAdvantages(ValueError):
    """The advantages cannot be computed again; the message says why."""


def advantages_of(
    config: Mapping[str, Any], index: TrajectoryIndex, of_step: Sequence[Row], group: int
) -> Advantages:
    """The advantages of a `group` at least, by the run's algorithm in this version's code.

    `of_step` are all training rows of its step that can be read. Raises NoAdvantages, or ValueError for a
    line that is damaged where the index did not look.
    """
    # These import torch, which takes seconds: only who looks at an advantage waits for it.
    from rl.batch import make_batch
    from rl.config import Config
    from rl.credit import CRITIC_ESTIMATORS, TEACHER_ESTIMATORS

    # What an older run does not have yet has its default; another recipe has settings of its own.
    if config.keys() - {field.name for field in fields(Config)} or "algorithm" not in config:
        raise NoAdvantages("the run's settings are not those of a policy-gradient recipe of this version")
    if ":" in config["algorithm"]:
        raise NoAdvantages(f"algorithm {config['algorithm']} is a file of its user, which is not run to look")
    try:
        row = Config(**config).make_algorithm()
    except ValueError as error:
        raise NoAdvantages(f"the run's algorithm is none of this version: {error}") from error
    if row.adv_estimator in CRITIC_ESTIMATORS | TEACHER_ESTIMATORS | {"spo"} or row.kl_coef:
        needed = "more than one step's rewards (a critic, a teacher, a reference policy or earlier steps)"
        raise NoAdvantages(f"the advantages of {row.name} need {needed}, which is not recorded")
    is_of_group = row.adv_estimator in GROUP_ESTIMATORS
    rows = [other for other in of_step if other.group == group or not is_of_group]
    _check_whole(config, rows, num_groups=1 if is_of_group else config["num_groups"])
    batch = make_batch(_groups([*index.records(rows)]))
    try:
        batch = row.assign_advantages(batch)
    except ValueError as error:
        raise NoAdvantages(str(error)) from error
    found: Advantages = defaultdict(dict)
    assert batch.advantages is not None  # assign_advantages fills them in
    for sample, values in zip(batch.samples, batch.advantages, strict=True):
        for turn in sorted({*sample.turn_ids[sample.loss_mask].tolist()}):
            trained = sample.loss_mask & (sample.turn_ids == turn)
            found[sample.trajectory_id][turn] = values[trained].tolist()
    return dict(found)


def _check_whole(config: Mapping[str, Any], rows: Sequence[Row], *, num_groups: int) -> None:
    """Refuse to compute from a part: a mean over the members that are left is another number."""
    members = Counter(row.group for row in rows)
    size = config["group_size"]
    if broken := [group for group, count in members.items() if count != size]:
        raise NoAdvantages(
            f"only {members[broken[0]]} of the {size} trajectories of group {broken[0]} can be read, and an "
            "advantage takes all of them"
        )
    if len(members) != num_groups:
        raise NoAdvantages(
            f"only {len(members)} of the step's {num_groups} groups can be read, and an advantage takes "
            "all of them"
        )


def _groups(records: Sequence[Record]) -> list[TrajectoryGroup]:
    members: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        members[record.group].append(record)
    return [
        TrajectoryGroup(
            task=group[0].trajectory.episode.task,
            index=index,
            trajectories=tuple(record.trajectory for record in group),
        )
        for index, group in members.items()
    ]
