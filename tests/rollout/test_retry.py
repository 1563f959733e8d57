"""Another attempt: what the world spoiled once is as it would have been; what it spoils for good is data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envs.base import ToolServerError, WorldError
from envs.messages import StopReason
from envs.sandbox.base import SandboxError
from rollout.clock import ClockError, ended_by_clock, require_no_clock
from rollout.outcomes import drop_reason, failure_of
from rollout.record import Record, decode_record, encode_record
from rollout.retry import RetryPolicy
from rollout.trajectory import FailedAttempt, Trajectory, TrajectoryError
from tests.failing_worlds import AT_ONCE, GoneForGoodError, Player, play

DIED = SandboxError("no space left in /tmp")


def untimed(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, timings_s={}, call_s={}, attempts=())


@pytest.mark.parametrize(("place", "num_lost"), [("reset", 0), ("step", True)])
async def test_a_world_that_recovers_leaves_the_trajectory_as_if_it_had_never_failed(place, num_lost):
    (sound,) = (await play()).trajectories
    policy = Player()
    (saved,) = (await play((place, DIED), policy=policy)).trajectories
    assert untimed(saved) == untimed(sound)
    assert saved.score.value == 1.0
    first = len(sound.turns[0].completion.token_ids) if num_lost else 0
    failed = TrajectoryError(kind="SandboxError", message="no space left in /tmp", retryable=True)
    assert saved.attempts == (FailedAttempt(error=failed, num_sampled_tokens=first),)
    assert saved.num_spent_tokens == sound.num_sampled_tokens + first
    assert len(set(policy.seeds)) == 3  # the second attempt asked with the seeds of the first


async def test_a_world_that_keeps_failing_is_an_error_after_the_last_attempt():
    server = ToolServerError("connection refused")
    retry = replace(AT_ONCE, max_attempts=3)
    (spoiled,) = (await play(("step", DIED), ("reset", server), ("step", DIED), retry=retry)).trajectories
    assert [attempt.error.kind for attempt in spoiled.attempts] == ["SandboxError", "ToolServerError"]
    assert (drop_reason(spoiled), spoiled.score.value) == ("error/SandboxError", None)
    assert spoiled.episode.stop_reason is StopReason.ERROR
    failure = failure_of(spoiled)
    assert str(failure) == "trajectory 7-3-0: SandboxError: no space left in /tmp"


@pytest.mark.parametrize(
    ("failure", "retry"),
    [
        (("step", GoneForGoodError("gone")), AT_ONCE),
        (("reset", GoneForGoodError("gone")), AT_ONCE),
        (("step", DIED), RetryPolicy(max_attempts=1)),
    ],
)
async def test_what_is_not_worth_another_attempt_or_has_none_left_is_not_tried_again(failure, retry):
    (spoiled,) = (await play(failure, retry=retry)).trajectories
    assert (spoiled.error is not None, spoiled.attempts) == (True, ())
    assert ended_by_clock(spoiled) == ""


async def test_an_episode_whose_environment_fails_at_closing_stands():
    (over,) = (await play(("close", DIED))).trajectories
    assert (over.score.value, over.error, over.attempts) == (1.0, None, ())
    assert over.close_error is not None
    assert over.close_error.kind == "SandboxError"


async def test_a_bug_is_not_tried_again():
    with pytest.raises(ExceptionGroup) as raised:
        await play(("step", KeyError("ours")))
    assert raised.group_contains(KeyError)


async def test_no_attempt_begins_after_the_deadline_and_an_exact_run_says_so():
    waits = RetryPolicy(first_wait_s=30.0, longest_wait_s=30.0)
    group = await play(("step", DIED), retry=waits, max_wall_s=20)
    (spoiled,) = group.trajectories
    assert spoiled.attempts == ()
    assert "no time was left to play it again after SandboxError" in ended_by_clock(spoiled)
    with pytest.raises(ClockError, match="trajectory 7-3-0 depends on the clock"):
        require_no_clock([group])
    require_no_clock([await play(("step", DIED))])  # a saved one is what its seeds say


def test_waits_double_up_to_the_longest():
    policy = RetryPolicy(first_wait_s=0.5, longest_wait_s=3.0)
    assert [policy.wait_s(n) for n in (1, 2, 3, 4, 50)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="max_attempts is 0; expected at least 1"):
        RetryPolicy(max_attempts=0)


async def test_attempts_and_errors_are_recorded_without_loss():
    group = await play(("step", DIED), ("close", WorldError("left a mount")))
    (saved,) = group.trajectories
    row = encode_record(Record(step=1, split="train", group=3, member=0, trajectory=saved))
    back = decode_record(row).trajectory
    assert (back.attempts, back.close_error) == (saved.attempts, saved.close_error)
    assert saved.close_error is not None
    (spoiled,) = (await play(("step", DIED), ("step", DIED))).trajectories
    row = encode_record(Record(step=1, split="train", group=3, member=0, trajectory=spoiled))
    assert decode_record(row).trajectory.error == spoiled.error
    older = {name: value for name, value in row.items() if name not in ("attempts", "close_error")}
    assert decode_record(older | {"error": {"kind": "E", "message": "m"}}).trajectory.attempts == ()
