"""The advantages of a recorded step, computed again: a run writes rewards down, not advantages.

Exact where the advantage is a function of the step's trajectories and rewards alone. Where it also takes a
critic, a teacher, a reference policy or earlier steps, there is none to show, and the reason is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rollout.record import Record
from rollout.trajectory import TrajectoryGroup

Advantages = dict[str, dict[int, list[float]]]
"""Trajectory id -> turn -> one number a sampled token; what is not trained on is absent."""


class NoAdvantages(ValueError):
    """The advantages cannot be computed again; the message says why."""


def advantages_of(config: Mapping[str, Any], records: Sequence[Record]) -> Advantages:
    """The advantages of all training `records` of one step, by the run's algorithm in this version's code.

    Raises NoAdvantages.
    """
    # These import torch, which takes seconds: only who looks at an advantage waits for it.
    from rl.batch import make_batch
    from rl.config import Config
    from rl.credit import CRITIC_ESTIMATORS, TEACHER_ESTIMATORS

    if config.keys() != {field.name for field in fields(Config)}:
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
    batch = make_batch(_groups(records))
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
