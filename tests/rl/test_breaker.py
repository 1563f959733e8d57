"""The breaker: it trips at its share and not before, remembers over a resume, and says what failed."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from envs.sandbox.base import SandboxError
from rl.breaker import LEAST_EPISODES, Breaker
from rl.gates import GateError, StepGates
from rl.run_dir import RunState
from rollout.trajectory import TrajectoryError, TrajectoryGroup
from tests.failing_worlds import play
from tests.made_trajectories import group, trajectory

ERROR = TrajectoryError(kind="SandboxError", message="no space\nleft in /tmp")


def step_of(num_sound: int, num_failed: int = 0, num_unscored: int = 0) -> list[TrajectoryGroup]:
    """One step's group: sound members first, then those that the world and those that the reward failed."""
    return [
        group(
            *(trajectory(f"s{n}") for n in range(num_sound)),
            *(trajectory(f"f{n}", reward=None, error=ERROR) for n in range(num_failed)),
            *(trajectory(f"u{n}", reward=None, error_kind="timeout") for n in range(num_unscored)),
        )
    ]


def test_it_trips_above_its_share_of_the_window_and_not_at_it():
    gates = StepGates(gap_limit=1.0, breaker=Breaker(max_error_rate=0.5, error_window=64))
    gates.check_world(1, step_of(32, 32))
    with pytest.raises(GateError) as raised:
        gates.check_world(2, step_of(30, 20, 14))  # of the last 64
    assert str(raised.value) == (
        "step 2: 34 of the last 64 episodes failed by the world or the reward (SandboxError 20, reward "
        "timeout 14), more than --max-error-rate 0.5; the latest: trajectory u13: reward timeout: score None"
        ". Look at these trajectories with scripts.view and mend what failed, or raise --max-error-rate"
    )


def test_one_failure_more_than_the_share_is_enough_and_what_left_the_window_counts_no_more():
    assert Breaker(error_window=64).problem(step_of(31, 33)) != ""
    breaker = Breaker(error_window=64)
    assert breaker.problem(step_of(33, 31)) == ""
    assert breaker.problem(step_of(62, 2)) == ""  # the 31 are gone
    assert breaker.problem(step_of(34, 30)) == ""
    assert Breaker(max_error_rate=0.0).problem(step_of(63, 1)) != ""
    assert Breaker(max_error_rate=1.0).problem(step_of(1, 63)) == ""


def test_few_episodes_say_too_little():
    assert Breaker().problem(step_of(1, LEAST_EPISODES - 2)) == ""
    assert Breaker().problem(step_of(1, LEAST_EPISODES - 1)).startswith("31 of the last 32 episodes failed")
    assert Breaker(error_window=4).problem(step_of(1, 3)).startswith("3 of the last 4 episodes failed")


def test_it_remembers_over_a_resume():
    gates = StepGates(gap_limit=1.0, breaker=Breaker(error_window=64))
    gates.check_world(1, step_of(20, 20))
    saved = json.loads(json.dumps(asdict(RunState(gates=gates.state()))))
    resumed = StepGates(gap_limit=1.0, breaker=Breaker(error_window=64))
    resumed.restore(RunState(**saved).gates)
    with pytest.raises(GateError, match="33 of the last 64 episodes"):
        resumed.check_world(2, step_of(11, 13))
    forgetful = StepGates(gap_limit=1.0, breaker=Breaker(error_window=64))
    forgetful.restore({"above": 0, "skipped": 0})  # of a checkpoint that is older than the breaker
    forgetful.check_world(2, step_of(12, 12))


def test_a_step_without_any_score_ends_the_run_whatever_the_share():
    gates = StepGates(gap_limit=1.0, breaker=Breaker(max_error_rate=1.0))
    gates.check_world(1, [])  # a step that samples nothing has nothing to score
    with pytest.raises(GateError) as raised:
        gates.check_world(4, step_of(0, 3, 1))
    assert str(raised.value).startswith(
        "step 4: none of the 4 trajectories has a score, there is nothing to learn from: SandboxError 3, "
        "reward timeout 1; the latest: trajectory u0: reward timeout: score None. Look at these"
    )
    silent = [group(trajectory("a", reward=None), trajectory("b", reward=None))]
    with pytest.raises(GateError, match="nothing to learn from: the reward gave none on purpose"):
        gates.check_world(5, silent)


def test_an_episode_without_a_score_on_purpose_has_not_failed():
    silent = [group(*(trajectory(f"{n}", reward=None) for n in range(63)), trajectory("scored"))]
    assert Breaker().problem(silent) == ""


async def test_real_episodes_that_a_further_attempt_saved_have_not_failed():
    died = ("step", SandboxError("it died"))
    saved = [await play(*[died] * 8, group_size=8, index=n) for n in range(4)]
    assert sum(len(t.attempts) for g in saved for t in g.trajectories) == 32
    assert Breaker(error_window=32, max_error_rate=0.0).problem(saved) == ""
    lost = await play(died, *[None] * 7, died, group_size=8)
    message = Breaker(error_window=8, max_error_rate=0.1).problem([lost])
    assert message.startswith("1 of the last 8 episodes failed by the world or the reward (SandboxError 1)")
    assert "the latest: trajectory 7-3-0: SandboxError: it died." in message
