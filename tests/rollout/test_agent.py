"""The ReAct loop: exact tokens, one stop reason an episode, and failures of the world that are data."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from envs.messages import StopReason, message
from envs.policy import SamplingFilters
from rollout import agent
from rollout.agent import request_seed, run_group, score_trajectory
from rollout.limits import Limits
from tests.scripted import (
    CALC,
    CALL,
    END,
    PAD,
    RENDERER,
    REWARD,
    TASK,
    TOKENIZER,
    Script,
    Trouble,
    episode,
    reference_lines,
)


async def test_turns_hold_exactly_the_ids_that_the_policy_saw_and_said():
    first, second, answer, value = reference_lines(TASK)
    policy = Script(first, second, answer)
    trajectory = await episode(policy)
    assert trajectory.id == "7-3-0"
    assert trajectory.episode.stop_reason is StopReason.ANSWERED
    assert [entry.role for entry in trajectory.episode.transcript] == [
        "user",
        *["assistant", "tool"] * 2,
        "assistant",
    ]
    assert [turn.parent for turn in trajectory.turns] == [None, 0, 1]
    assert [trajectory.prompt_ids(index) for index in range(3)] == policy.prompts
    # P, A0 = first <|im_end|>, E = \n <|im_start|> tool \n value <|im_end|> \n <|im_start|> assistant \n
    said = RENDERER.completion_ids(first)
    heard = RENDERER.render_continuation([message("tool", str(value))], closed=True)
    assert policy.prompts[1] == RENDERER.render(TASK.messages) + said + heard
    assert trajectory.score.value is None
    assert (await score_trajectory(trajectory, REWARD, wall_s=5)).score.value == 1.0


async def test_a_turn_has_the_reward_that_the_environment_gave_it():
    first, second, answer, _ = reference_lines(TASK)
    trajectory = await episode(Script(first, "[calc 1+1]", second, answer))
    assert [turn.reward for turn in trajectory.turns] == [0.5, 0.0, 0.5, 0.0]


async def test_requests_carry_their_own_seed_temperature_stops_and_room():
    policy = Script(*reference_lines(TASK)[:3])
    filters = SamplingFilters(top_p=0.9, top_k=7)
    await episode(policy, limits=Limits(max_turn_tokens=40, max_total_tokens=100), filters=filters)
    assert {s.filters for s in policy.samplings} == {filters}
    assert [s.seed for s in policy.samplings] == [request_seed(0, 7, 3, 0, turn) for turn in range(3)]
    assert {s.stop_token_ids for s in policy.samplings} == {(END, PAD)}
    rooms = [min(40, 100 - len(prompt)) for prompt in policy.prompts]
    assert [s.max_tokens for s in policy.samplings] == rooms
    assert rooms[0] == 40 > rooms[2]


async def test_unclosed_call_of_a_finished_turn_is_observed_and_not_executed():
    trajectory = await episode(Script("[calc 12+34", "5"))
    assert trajectory.episode.final_state["operations"] == []
    assert trajectory.episode.metrics["parse/unclosed"] == 1.0
    assert trajectory.episode.transcript[2].is_error


async def test_turn_that_ended_by_padding_is_closed_in_the_context():
    policy = Script(CALL, "5", stop_id=PAD)
    trajectory = await episode(policy)
    assert trajectory.turns[0].completion.token_ids[-1] == PAD
    assert trajectory.turns[1].context_ids[:2] == (END, *TOKENIZER.encode("\n", add_special_tokens=False))


async def test_call_ids_count_on_over_the_turns():
    trajectory = await episode(Script(CALL + CALL, CALL, "5"))
    replies = [entry for entry in trajectory.episode.transcript if entry.role == "tool"]
    assert [reply.tool_call_id for reply in replies] == ["call_0", "call_1", "call_2"]


async def test_world_error_is_recorded_unscored_and_closed():
    env = Trouble()
    trajectory = await episode(Script("[do fine]", "[do world]"), env)
    assert trajectory.error is not None
    assert (trajectory.error.kind, trajectory.error.message) == ("WorldError", "the sandbox died")
    assert trajectory.episode.stop_reason is StopReason.ERROR
    assert len(trajectory.turns) == 2
    assert env.num_closed == 1

    def must_not_be_asked(episode):
        raise AssertionError

    reward = replace(REWARD, fn=must_not_be_asked)
    scored = await score_trajectory(trajectory, reward, wall_s=5)
    assert scored.score.value is None
    assert scored.score.error == "WorldError: the sandbox died"


@pytest.mark.parametrize(("what", "error"), [("bug", KeyError), ("socket", TimeoutError)])
async def test_any_other_exception_is_raised_and_the_environment_closed(what, error):
    env = Trouble()
    with pytest.raises(error):
        await episode(Script(f"[do {what}]"), env)
    assert env.num_closed == 1


async def test_episode_stands_and_the_failure_is_noted_when_its_environment_does_not_close(monkeypatch):
    monkeypatch.setattr(agent, "CLOSE_WALL_S", 0.1)
    env = Trouble()
    env.hangs_at_close = True
    trajectory = await episode(Script("5"), env)
    assert (trajectory.error, trajectory.episode.stop_reason) == (None, StopReason.ANSWERED)
    assert trajectory.close_error is not None
    assert trajectory.close_error.kind == "CloseError"


async def test_bug_is_not_hidden_by_an_environment_that_does_not_close(monkeypatch):
    monkeypatch.setattr(agent, "CLOSE_WALL_S", 0.1)
    env = Trouble()
    env.hangs_at_close = True
    with pytest.raises(KeyError):
        await episode(Script("[do bug]"), env)


async def test_aborted_request_is_the_worlds_failure():
    trajectory = await episode(Script(CALL, finish_reason="abort"))
    assert trajectory.error is not None
    assert trajectory.error.kind == "AbortedError"
    assert trajectory.num_sampled_tokens == 11  # they were sampled, and are accounted for


class Reader:
    """A policy that plays the reference from what its prompt shows, so that it serves any number of episodes.

    It waits until `num_at_once` requests are there: only concurrent members get past it.
    """

    def __init__(self, task, num_at_once: int) -> None:
        self.lines = reference_lines(task)[:3]
        self.barrier = asyncio.Barrier(num_at_once)

    async def complete(self, prompt_ids, sampling):
        await self.barrier.wait()
        num_spoken = TOKENIZER.decode(list(prompt_ids)).count("<|im_start|>assistant") - 1
        return await Script(self.lines[num_spoken]).complete(prompt_ids, sampling)


def group(policy, *, group_size, definition=CALC, reward=REWARD):
    return run_group(
        TASK,
        definition,
        policy,
        RENDERER,
        reward,
        index=3,
        group_size=group_size,
        trajectory_id=lambda member: f"7-3-{member}",
        request_seed=partial(request_seed, 0, 7, 3),
        limits=Limits(max_wall_s=20),
        context_length=1024,
    )


async def test_members_of_a_group_run_at_once_on_the_same_task_and_are_scored():
    result = await group(Reader(TASK, num_at_once=100), group_size=100)
    assert (result.task, result.index) == (TASK, 3)
    assert [t.id for t in result.trajectories] == [f"7-3-{member}" for member in range(100)]
    assert all(t.episode.task is TASK for t in result.trajectories)
    assert result.rewards == [1.0] * 100
    alone = await group(Reader(TASK, num_at_once=1), group_size=1)
    assert {t.turns for t in result.trajectories} == {alone.trajectories[0].turns}
    assert set(alone.trajectories[0].timings_s) == {"generate", "tools", "reward"}
    assert alone.trajectories[0].timings_s["reward"] > 0


async def test_bug_in_one_member_closes_all_environments_of_the_group():
    envs = []

    def make_env():
        envs.append(Trouble())
        return envs[-1]

    class Members:
        def __init__(self) -> None:
            self.policies = iter([Script("[do bug]"), Script("[do hang]"), Script("[do hang]")])

        async def complete(self, prompt_ids, sampling):
            return await next(self.policies).complete(prompt_ids, sampling)

    with pytest.raises(ExceptionGroup) as raised:
        await group(Members(), group_size=3, definition=replace(CALC, make_env=make_env))
    assert raised.group_contains(KeyError)
    assert [env.num_closed for env in envs] == [1, 1, 1]


def test_request_seeds_are_pure_and_differ_in_their_low_32_bits():
    # BLAKE2b-64 of the five big-endian 64-bit integers 1, 2, 3, 4, 5, shifted right by one bit.
    assert request_seed(1, 2, 3, 4, 5) == 5429888050870145084
    places = [(run, step, index, member, turn) for run in (0, 1) for step in (0, 1) for index in range(5)
              for member in range(8) for turn in range(3)]  # fmt: skip
    seeds = [request_seed(*place) for place in places]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) == len(places)
