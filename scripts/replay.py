"""Run the learner alone on a recorded step: the same loss, to the bit, or something has changed.

    python -m scripts.replay runs/NAME 12

A step's loss depends on the weights before it, so the learner goes through the recorded steps from the first
one on: the trajectories of each from trajectories.jsonl, scored, weighed and updated on as the run did,
without engine, environment or Ray. On the machine that made the run every loss is equal to the bit; elsewhere
sums may round otherwise. Exit code 0: equal at STEP; 1: not; 2: nothing to replay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import tyro
from transformers.utils import logging as transformers_logging

from recipes.placement import make_learner_spec
from recipes.preference_config import PreferenceConfig
from rl.batch import make_batch
from rl.config import Config
from rl.learner import Learner
from rl.metrics import Metrics, mean_metrics
from rl.preference_learner import Preference, PreferenceLearner
from rollout.record import Record, read_records
from rollout.trajectory import TrajectoryGroup

LOSSES = ("policy/loss", "preference/loss")


class ReplayError(ValueError):
    """The run cannot be replayed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which step of which run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    step: Annotated[int, tyro.conf.Positional]
    """Step, from 1."""


def read_config(run: Path) -> Config:
    """The configuration of a run. Raises ReplayError where there is none, or none that can be replayed."""
    path = run / "config.json"
    if not path.is_file():
        raise ReplayError(f"{run} holds no config.json; expected the directory of a run")
    settings: dict[str, Any] = json.loads(path.read_text())
    for kind in (Config, PreferenceConfig):
        if settings.keys() == {field.name for field in fields(kind)}:
            config = kind(**settings)
            break
    else:
        raise ReplayError(
            f"the settings in {path} are not those of a recipe that learns from trajectories in this version"
        )
    if config.replay_routing:
        raise ReplayError("the run replayed its engines' choice of experts, which records do not hold")
    if config.sabotage == "perturb_learner":
        raise ReplayError(
            "the run's learner was perturbed before its start (--sabotage); there is nothing to repeat"
        )
    return config


def read_metrics(run: Path) -> dict[int, Metrics]:
    """Step -> its metrics."""
    rows = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {row.pop("step"): row for row in rows}


def recorded_groups(run: Path) -> Iterator[tuple[int, list[TrajectoryGroup]]]:
    """(step, its groups) in order, as they were handed to the learner."""
    records = (record for record in read_records(run / "trajectories.jsonl") if record.split == "train")
    for step, of_step in groupby(records, key=lambda record: record.step):
        yield (
            step,
            [_group(list(members)) for _, members in groupby(of_step, key=lambda record: record.group)],
        )


def _group(members: list[Record]) -> TrajectoryGroup:
    trajectories = tuple(record.trajectory for record in members)
    return TrajectoryGroup(
        task=trajectories[0].episode.task, index=members[0].group, trajectories=trajectories
    )


def replay(run: Path, step: int) -> tuple[Metrics, Metrics]:
    """The metrics of `step` as the run logged them, and as they come out now.

    Raises:
        ReplayError: the step was not run, or a step before it was not recorded.
    """
    config, logged = read_config(run), read_metrics(run)
    if step not in logged:
        raise ReplayError(
            f"step {step} was not run: {run} has steps {min(logged, default=0)} to {max(logged, default=0)}"
        )
    objective = config.make_algorithm()
    running = objective.start()
    transformers_logging.disable_progress_bar()
    kind: Any = PreferenceLearner if isinstance(objective, Preference) else Learner
    learner = kind(make_learner_spec(config, objective, run_name="replay", incidents=""))
    for number, (recorded, groups) in enumerate(recorded_groups(run), 1):
        if recorded != number:
            break
        batch = learner.score(make_batch(groups), running.needs_for(config.num_minibatches))
        whole = (
            objective.make_pairs(batch)
            if isinstance(objective, Preference)
            else running.assign_advantages(batch)
        )
        updates = [learner.update(part) for part in whole.minibatches(config.num_minibatches)]
        print(f"step {number}: replayed", file=sys.stderr)
        if number == step:
            return logged[step], mean_metrics(updates)
        running = running.after_step(logged[number])
    raise ReplayError(
        f"not every step up to {step} was recorded (--max-record-mb = {config.max_record_mb:g} was reached?)"
    )


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    try:
        logged, found = replay(options.run, options.step)
    except ReplayError as error:
        print(f"Nothing was replayed: {error}", file=sys.stderr)
        return 2
    equal = True
    for name in sorted(found.keys() & logged.keys()):
        same = found[name] == logged[name]
        equal &= same or name not in LOSSES
        print(f"{name:<32} {logged[name]!r:>26} {found[name]!r:>26}  {'equal' if same else 'DIFFERENT'}")
    print(
        f"step {options.step}: the loss is {'equal to the bit' if equal else 'NOT the one that was logged'}"
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
