"""What an unscored episode does to its group: nothing; and who is told of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.episode import ErrorKind, Score
from rewards.base import Sample
from rewards.forms import of_groups
from rl.batch import make_batch
from rl.config import Config
from rl.console import RunConsole
from rl.journal import Journal
from rl.metrics import check_names, rollout_metrics
from rl.run_dir import RunDir
from rl.screens import step_line
from rollout.agent import run_group
from rollout.limits import Limits
from rollout.retry import RetryPolicy
from rollout.trajectory import Trajectory, TrajectoryError
from tests.made_trajectories import group, trajectory
from tests.rl.test_gradients import gradient, moved_learner, weighed
from tests.scripted import CALC, CALL, RENDERER, TASK, Script, Trouble
from tests.tiny import load, make_group, make_tiny_model

MEMBERS = [
    ([[5, 6, 7], [8, 9]], 1.0),
    ([[5, 6, 7], [10, 11, 12]], 0.0),
    ([[5, 6, 7], [13, 14], [15], [16, 17, 18]], 0.25),
]
LOST = ([[5, 6, 7], [20, 21, 22, 23]], None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_gradient_of_a_group_with_an_unscored_member_is_that_of_the_group_without_it(
    folder: Path, algorithm: str, place: int
) -> None:
    model, own = load(folder), moved_learner(folder, algorithm)
    others = make_group(1, MEMBERS[:2], model=model)
    gradients = []
    for members in (MEMBERS, [*MEMBERS[:place], LOST, *MEMBERS[place:]]):
        batch = make_batch([make_group(0, members, model=model), others])
        gradients.append(gradient(own, weighed(own, batch))[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def unscored(name: str, kind: ErrorKind, **fields: Any) -> Trajectory:
    score = Score(value=None, error=f"reward r on {name}: bad\nTraceback", error_kind=kind)
    return replace(trajectory(name, **fields), score=score)


GROUP = group(
    unscored("a", "exception"),
    unscored("b", "exception"),
    unscored("c", "timeout"),
    unscored("d", ""),  # the reward does not apply: no failure
    unscored("e", "world", error=TrajectoryError(kind="WorldError", message="gone")),  # it was never asked
    trajectory("f", reward=1.0, parts={"errors": 3.0, "unscored_timeout": 2.0, "right": 1.0}),
)


def test_reward_errors_are_counted_by_kind_and_a_users_part_does_not_hide_them():
    metrics = rollout_metrics([GROUP])
    assert {name: value for name, value in metrics.items() if name.startswith("reward/")} == {
        "reward/errors": 3.0,
        "reward/unscored_exception": 2.0,
        "reward/unscored_timeout": 1.0,
        "reward/part_errors": 3.0,
        "reward/part_unscored_timeout": 2.0,
        "reward/right": 1.0,
    }
    check_names(metrics)
    assert step_line(1, metrics).endswith("  3 reward errors")
    assert "reward errors" not in step_line(1, rollout_metrics([group(trajectory("a", reward=1.0))]))


def test_reward_errors_are_written_down_whole_and_told_in_one_line(tmp_path: Path, capsys):
    with RunDir(tmp_path / "run") as directory, RunConsole(4, file=io.StringIO()) as console:
        journal = Journal(directory, Config(), console, decode=lambda ids: "")
        journal.observe([GROUP], make_batch([GROUP]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "reward_errors.jsonl").read_text().splitlines()]
    assert [(row["trajectory"], row["kind"], row["step"]) for row in rows] == [
        ("a", "exception", 1),
        ("b", "exception", 1),
        ("c", "timeout", 1),
    ]
    assert rows[0]["error"] == "reward r on a: bad\nTraceback"
    (line,) = capsys.readouterr().err.splitlines()
    assert "train step 1: 3 of 6 episodes unscored; trajectory a, exception: reward r on a: bad (" in line


class Compared:
    """A reward of groups, in this process: each member's place among those that it was given."""

    name, shuffled, is_group = "compared", False, True

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def score(self, samples: list[Sample], *, timeout_s: float) -> list[Score]:
        self.asked.append([sample.id for sample in samples])
        form = of_groups("compared", lambda them: [Score(value=float(i)) for i in range(len(them))])
        assert samples[0].token_ids
        assert samples[0].step == 9
        return form.score(samples)


async def test_a_reward_of_groups_is_asked_once_for_the_members_whose_world_held():
    class Members:
        def __init__(self) -> None:
            self.policies = iter([Script(CALL, "2"), Script("[do world]"), Script(CALL, "3")])
            self.of = {}

        async def complete(self, prompt_ids, sampling):
            if sampling.seed not in self.of:  # one a member
                self.of[sampling.seed] = next(self.policies)
            return await self.of[sampling.seed].complete(prompt_ids, sampling)

    envs = iter([CALC.make_env(), Trouble(), CALC.make_env()])
    reward = Compared()
    result = await run_group(
        TASK,
        replace(CALC, make_env=lambda: next(envs)),
        Members(),
        RENDERER,
        reward,
        index=3,
        group_size=3,
        trajectory_id=lambda member: f"7-3-{member}",
        request_seed=lambda member, turn: member,
        limits=Limits(max_wall_s=20),
        context_length=1024,
        retry=RetryPolicy(max_attempts=1),
        step=9,
    )
    assert reward.asked == [["7-3-0", "7-3-2"]]
    assert [t.score.value for t in result.trajectories] == [0.0, None, 1.0]
