"""What a trajectory came to, in words that fit into one line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from envs.base import EngineRequestError, JudgeError, RewardError, ToolServerError, WorldError
from envs.sandbox.base import SandboxError
from rollout.completions import completion_of
from rollout.engine import EngineError
from rollout.failures import world_cause
from rollout.outcomes import MAX_MESSAGE_CHARS, failures_of, failures_told
from rollout.trajectory import TrajectoryError
from tests.made_trajectories import group, trajectory


def test_failures_are_told_by_kind_with_the_latest_in_one_line():
    long = TrajectoryError(kind="ToolServerError", message="down\n" * 500)
    died = TrajectoryError(kind="SandboxError", message="died")
    members = [trajectory("a", reward=None, error=died), trajectory("b"), trajectory("c", reward=None)]
    members += [trajectory(f"d{n}", reward=None, error=long) for n in range(2)]
    told = failures_told(failures_of([group(*members)]))
    assert told.startswith(
        "ToolServerError 2, SandboxError 1; the latest: trajectory d1: ToolServerError: down"
    )
    assert len(told) < MAX_MESSAGE_CHARS + 100
    assert "\n" not in told
    assert failures_told([]) == ""


def test_errors_of_the_world_say_whether_another_attempt_is_worth_it():
    assert {
        error for error in (WorldError, SandboxError, ToolServerError, EngineRequestError) if error.retryable
    }
    assert not any(error.retryable for error in (RewardError, JudgeError))
    # Outside an episode they stop a run in words and not as a bug.
    assert world_cause(SandboxError("no space")) == "no space"


@pytest.mark.parametrize("reason", ["error", "repetition", None])
def test_an_output_that_ended_for_no_reason_of_a_completion_is_a_failed_request(reason):
    output = SimpleNamespace(token_ids=[], logprobs=[], weight_versions=[], finish_reason=reason)
    with pytest.raises(EngineRequestError, match="vLLM ended the request with"):
        completion_of(output, return_kept=False)
    output.finish_reason = "abort"
    assert completion_of(output, return_kept=False).finish_reason == "abort"
    assert not issubclass(EngineError, WorldError)  # its death ends the run
