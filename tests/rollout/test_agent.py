"""The ReAct loop: exact tokens, one stop reason an episode, and failures of the world that are data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from envs.base import WorldError
from envs.messages import ParseStatus, StopReason, message
from envs.policy import Completion, SamplingParams, VersionSpan
from envs.registry import resolve_env
from envs.splits import Split, task_seed
from envs.tool_env import ToolEnv
from envs.tools import tool
from recipes.char_tokenizer import make_char_tokenizer
from rewards.base import resolve_reward
from rollout import agent
from rollout.agent import request_seed, run_episode, run_group, score_trajectory
from rollout.limits import Limits
from rollout.renderer import ChatMLRenderer

CALC = resolve_env("calc")
REWARD = resolve_reward("", CALC)
TASK = CALC.make_task(1, task_seed(Split.TRAIN, 0, 0))
TOKENIZER = make_char_tokenizer()
RENDERER = ChatMLRenderer(TOKENIZER)
END, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


class Script:
    """A policy that says its lines in order, each cut at the tokens that it may have."""

    def __init__(self, *lines: str, stop_id: int = END, finish_reason: str | None = None) -> None:
        self.lines, self.stop_id, self.finish_reason = lines, stop_id, finish_reason
        self.prompts: list[tuple[int, ...]] = []
        self.samplings: list[SamplingParams] = []

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        line = self.lines[len(self.prompts)]
        self.prompts.append(tuple(prompt_ids))
        self.samplings.append(sampling)
        ids = (*TOKENIZER.encode(line, add_special_tokens=False), self.stop_id)[: sampling.max_tokens]
        return Completion(
            token_ids=ids,
            logprobs=(-0.5,) * len(ids),
            version_spans=(VersionSpan(version=0, start=0, end=len(ids)),),
            finish_reason=self.finish_reason or ("stop" if ids[-1] == self.stop_id else "length"),
        )


class Patient:
    """A policy that waits before it speaks."""

    def __init__(self, policy, wait_s: float) -> None:
        self.policy, self.wait_s = policy, wait_s

    async def complete(self, prompt_ids, sampling):
        await asyncio.sleep(self.wait_s)
        return await self.policy.complete(prompt_ids, sampling)


class Trouble(ToolEnv):
    """Does what the policy asks for: fail as the world fails, fail as a bug, hang."""

    def __init__(self) -> None:
        super().__init__()
        self.num_closed = 0
        self.hangs_at_close = False

    @tool
    async def do(self, what: str) -> str:
        """Fail in the way that `what` names."""
        match what:
            case "world":
                raise WorldError("the sandbox died")
            case "bug":
                raise KeyError("ours")
            case "hang":
                await asyncio.sleep(60)
            case "socket":
                raise TimeoutError("a socket's")
        return what

    async def close(self) -> None:
        self.num_closed += 1
        await super().close()
        if self.hangs_at_close:
            await asyncio.sleep(60)


def reference_lines(task):
    (a, x, b, y), (c, z, d, w) = task.metadata["plan"]
    return f"[calc {a}{x}{b}]", f"[calc {c}{z}{d}]", str(w), y


def episode(policy, env=None, *, limits=Limits(), context_length=1024, task=TASK):  # noqa: B008  (frozen)
    return run_episode(
        task,
        env or CALC.make_env(),
        policy,
        RENDERER,
        trajectory_id="7-3-0",
        request_seed=partial(request_seed, 0, 7, 3, 0),
        limits=limits,
        context_length=context_length,
    )


def prompt_length(task=TASK):
    return len(RENDERER.render(task.messages))


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


async def test_requests_carry_their_own_seed_temperature_stops_and_room():
    policy = Script(*reference_lines(TASK)[:3])
    await episode(policy, limits=Limits(max_turn_tokens=40, max_total_tokens=100))
    assert [s.seed for s in policy.samplings] == [request_seed(0, 7, 3, 0, turn) for turn in range(3)]
    assert {s.stop_token_ids for s in policy.samplings} == {(END, PAD)}
    rooms = [min(40, 100 - len(prompt)) for prompt in policy.prompts]
    assert [s.max_tokens for s in policy.samplings] == rooms
    assert rooms[0] == 40 > rooms[2]


CALL = "[calc 1+1]"  # 10 characters, 11 tokens with <|im_end|>


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


async def test_wall_time_ends_a_tool_that_hangs():
    env = Trouble()
    trajectory = await episode(Script("[do hang]"), env, limits=Limits(max_wall_s=0.1))
    assert trajectory.episode.stop_reason is StopReason.MAX_WALL_S
    assert trajectory.error is None
    assert env.num_closed == 1
    assert 0.05 < trajectory.timings_s["tools"] < 5.0


async def test_wall_time_ends_a_policy_that_is_slow_and_before_its_first_word_nobody_is_graded():
    slow = Patient(Script(CALL), wait_s=60)
    trajectory = await episode(slow, limits=Limits(max_wall_s=0.1))
    assert trajectory.episode.stop_reason is StopReason.ERROR
    assert trajectory.error is not None
    assert trajectory.error.kind == "SlowStartError"
    assert 0.05 < trajectory.timings_s["generate"] < 5.0


async def test_environment_that_does_not_close_is_a_failed_world(monkeypatch):
    monkeypatch.setattr(agent, "CLOSE_WALL_S", 0.1)
    env = Trouble()
    env.hangs_at_close = True
    trajectory = await episode(Script("5"), env)
    assert trajectory.error is not None
    assert trajectory.error.kind == "CloseError"


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


@pytest.mark.parametrize(
    "field", ["max_turns", "max_turn_tokens", "max_total_tokens", "max_tool_calls", "max_wall_s"]
)
def test_limits_refuse_values_that_allow_nothing(field):
    with pytest.raises(ValueError, match=rf"Limits.{field} is -1; expected"):
        Limits(**{field: -1})
    with pytest.raises(ValueError, match="expected more than 0"):
        Limits(max_wall_s=float("nan"))
