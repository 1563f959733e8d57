"""Evaluation inside a run: what could not be scored is told wherever success is."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.evaluating import HeldOut
from rl.config import Config
from rl.console import RunConsole
from rl.intervals import SuccessRate, verdict
from rl.journal import Journal
from rl.run_dir import RunDir
from rl.screens import EndFacts, end_lines
from rollout.collector import Collector, CollectorSpec, GroupRequest
from rollout.task_stream import TaskStream
from rollout.trajectory import TrajectoryGroup
from tests.tiny import make_group

REWARDS = {0: 1.0, 1: None, 2: 0.0, 3: None}
SAID = "0.250 (1 of 4; 95 % interval 0.046-0.699); 2 unscored, counted as not solved"


class Scripted:
    """Runs groups: the rewards of REWARDS, by task index."""

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        return make_group(request.index, [([[1], [2]], REWARDS[request.index])])


@contextmanager
def held_out(path: Path, *, resumed: bool = False) -> Iterator[HeldOut]:
    config = Config(eval_tasks=len(REWARDS))
    stream = TaskStream(env=config.env, level=config.level, run_seed=0)
    collector: Any = Collector(stream, [Scripted()], CollectorSpec(group_size=1))
    with RunDir(path, resumed=resumed) as directory, RunConsole(1, file=io.StringIO()) as console:
        journal = Journal(directory, config, console, decode=lambda ids: "")
        yield HeldOut(config=config, collector=collector, journal=journal, directory=directory)


def test_unscored_episodes_are_said_beside_success(tmp_path: Path) -> None:
    with held_out(tmp_path / "run") as measure:
        measured = asyncio.run(measure.evaluate(step=1))
    assert (measured.rate, measured.num_unscored) == (SuccessRate(1, 4), 2)
    assert str(measured) == SAID


def test_a_run_that_goes_on_still_knows_them_of_its_starting_policy(tmp_path: Path) -> None:
    with held_out(tmp_path / "run") as measure:
        first = asyncio.run(measure.before(None))
    with held_out(tmp_path / "run", resumed=True) as measure:
        again = asyncio.run(measure.before(first.rate))
    assert first == again
    assert str(again) == SAID


def test_the_end_screen_says_them_too() -> None:
    before, after = SuccessRate(1, 4), SuccessRate(3, 4)
    facts = EndFacts(
        before=before,
        after=after,
        verdict=verdict(before, after, 0.3),
        wall_s=1.0,
        paths={"policy": "x"},
        next_commands=[],
        num_unscored=(2, 0),
    )
    text = "\n".join(end_lines(facts))
    assert f"  starting policy  {SAID}\n" in text
    assert "  trained policy   0.750 (3 of 4; 95 % interval 0.301-0.954)\n" in text
