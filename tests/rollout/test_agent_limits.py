"""Limits of an episode: each ends it with its own stop reason."""

from __future__ import annotations

import asyncio

import pytest

from envs.deadline import paused
from envs.messages import ParseStatus, StopReason
from envs.tool_env import ToolEnv
from envs.tools import tool
from rollout.agent import score_trajectory
from rollout.limits import Limits
from tests.scripted import CALL, REWARD, Patient, Script, Trouble, episode, prompt_length


@pytest.mark.parametrize(
    ("limits", "context_length", "lines", "reason", "num_turns"),
    [
        (Limits(max_turns=2), 1024, [CALL] * 3, StopReason.MAX_TURNS, 2),
        (Limits(max_turn_tokens=10), 1024, [CALL], StopReason.MAX_TURN_TOKENS, 1),
        (Limits(max_total_tokens=prompt_length() + 10), 1024, [CALL], StopReason.MAX_TOTAL_TOKENS, 1),
        (Limits(), prompt_length() + 10, [CALL], StopReason.CONTEXT_LIMIT, 1),
        # 11 said, 10 heard (\n <|im_start|> tool \n 2 <|im_end|> \n <|im_start|> assistant \n), no room
        (Limits(max_total_tokens=prompt_length() + 21), 1024, [CALL], StopReason.MAX_TOTAL_TOKENS, 1),
        (Limits(), prompt_length() + 21, [CALL], StopReason.CONTEXT_LIMIT, 1),
        (Limits(), prompt_length(), [], StopReason.CONTEXT_LIMIT, 0),
        (Limits(max_tool_calls=2), 1024, [CALL, CALL + CALL], StopReason.MAX_TOOL_CALLS, 2),
        (Limits(max_tool_calls=0), 1024, ["5"], StopReason.ANSWERED, 1),
        # ties go to the first in the documented order
        (
            Limits(max_turn_tokens=10, max_total_tokens=prompt_length() + 10),
            prompt_length() + 10,
            [CALL],
            StopReason.MAX_TURN_TOKENS,
            1,
        ),
        (
            Limits(max_total_tokens=prompt_length() + 10),
            prompt_length() + 10,
            [CALL],
            StopReason.MAX_TOTAL_TOKENS,
            1,
        ),
        (Limits(max_turns=1), prompt_length() + 21, [CALL], StopReason.MAX_TURNS, 1),
    ],
)
async def test_each_limit_ends_the_episode_with_its_own_reason(
    limits, context_length, lines, reason, num_turns
):
    trajectory = await episode(Script(*lines), limits=limits, context_length=context_length)
    assert (trajectory.episode.stop_reason, len(trajectory.turns)) == (reason, num_turns)
    assert trajectory.error is None
    scored = await score_trajectory(trajectory, REWARD, wall_s=5)
    assert scored.score.value == 0.0  # graded as it is: a limit is not the world's failure


async def test_last_turn_within_max_turns_is_executed_and_calls_beyond_max_tool_calls_are_not():
    trajectory = await episode(Script(CALL), limits=Limits(max_turns=1))
    assert len(trajectory.episode.final_state["operations"]) == 1
    trajectory = await episode(Script(CALL, CALL + CALL), limits=Limits(max_tool_calls=2))
    assert len(trajectory.episode.final_state["operations"]) == 1


@pytest.mark.parametrize("line", ["[calc 12+34", "[calc 1+1] [calc 12+34"])
async def test_cut_completion_executes_nothing(line):
    trajectory = await episode(Script(line), limits=Limits(max_turn_tokens=len(line)))
    assert trajectory.episode.stop_reason is StopReason.MAX_TURN_TOKENS
    assert trajectory.episode.final_state["operations"] == []
    assert trajectory.episode.transcript[-1].tool_calls[-1].status is ParseStatus.UNCLOSED


async def test_wall_time_ends_a_tool_that_hangs():
    env = Trouble()
    trajectory = await episode(Script("[do hang]"), env, limits=Limits(max_wall_s=0.1))
    assert trajectory.episode.stop_reason is StopReason.MAX_WALL_S
    assert trajectory.error is None
    assert env.num_closed == 1
    assert 0.05 < trajectory.timings_s["tools"] < 5.0


class Crowded(ToolEnv):
    """Its tool waits for sandboxes of others, longer than an episode may take."""

    @tool
    async def do(self, what: str) -> str:
        """Wait."""
        with paused():
            await asyncio.sleep(0.6)
        return what


async def test_wall_time_does_not_count_a_wait_for_the_sandboxes_of_others():
    trajectory = await episode(Script("[do x]", "5"), Crowded(), limits=Limits(max_wall_s=0.3))
    assert trajectory.episode.stop_reason is StopReason.ANSWERED


async def test_wall_time_ends_a_policy_that_is_slow_and_before_its_first_word_nobody_is_graded():
    slow = Patient(Script(CALL), wait_s=60)
    trajectory = await episode(slow, limits=Limits(max_wall_s=0.1))
    assert trajectory.episode.stop_reason is StopReason.ERROR
    assert trajectory.error is not None
    assert trajectory.error.kind == "SlowStartError"
    assert 0.05 < trajectory.timings_s["generate"] < 5.0


@pytest.mark.parametrize(
    "field", ["max_turns", "max_turn_tokens", "max_total_tokens", "max_tool_calls", "max_wall_s"]
)
def test_limits_refuse_values_that_allow_nothing(field):
    with pytest.raises(ValueError, match=rf"Limits.{field} is -1; expected"):
        Limits(**{field: -1})
    with pytest.raises(ValueError, match="expected more than 0"):
        Limits(max_wall_s=float("nan"))
