"""A model behind an OpenAI-compatible chat endpoint, as an agent: text in, text out, and no token ids.

It can be evaluated, not trained. The model is told of its tools in a system message and calls them as text
(envs/tools.py), so it needs no function calling; what a tool says comes back as a user's message.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.base import Env, WorldError
from envs.deadline import Deadline, DeadlineError, within
from envs.endpoint import SEED_BITS, ChatEndpoint
from envs.episode import Episode, Score
from envs.messages import Message, StopReason, ToolSpec
from envs.policy import Completion
from envs.registry import EnvDefinition
from envs.tools import assistant_message, describe_tools
from rewards.base import Scorer
from rollout.agent import CLOSE_WALL_S, request_seed, score_trajectories, score_trajectory
from rollout.collector import GroupRequest
from rollout.limits import Budget, Limits
from rollout.trajectory import Trajectory, TrajectoryError, TrajectoryGroup

REWARD_WALL_S = 30.0


def chat_messages(transcript: Sequence[Message], said: Sequence[str], tools: Sequence[ToolSpec]) -> list[Any]:
    """The transcript as the endpoint reads it; `said` are the model's own messages, verbatim.

    Messages of one role that follow each other become one, a line each: some servers insist on turns.
    """
    chat: list[dict[str, str]] = []
    own = iter(said)
    system = [("system", describe_tools(tools))] if tools else []
    spoken = [(m.role, next(own) if m.role == "assistant" else m.text) for m in transcript]
    for role, text in [*system, *spoken]:
        speaker = "user" if role == "tool" else role
        if chat and speaker == chat[-1]["role"] != "assistant":
            chat[-1]["content"] += "\n" + text
        else:
            chat.append({"role": speaker, "content": text})
    return chat


@dataclass(frozen=True, kw_only=True)
class EndpointRollouts:
    """Runs groups (a GroupRunner) with an endpoint in the engine's place.

    Its trajectories have no turns, as turns are token ids. `limits.max_total_tokens` counts what the server
    reports of prompts and replies. An episode that is slower than `limits.max_wall_s` is unscored: the world
    was slow, not the policy.
    """

    endpoint: ChatEndpoint
    definition: EnvDefinition
    reward: Scorer
    limits: Limits
    run_seed: int

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        """Run every member of one group to its end."""
        await self.reward.start()
        async with asyncio.TaskGroup() as members:
            running = [members.create_task(self._member(request, m)) for m in range(request.group_size)]
        trajectories = [run.result() for run in running]
        if self.reward.is_group:
            trajectories = await score_trajectories(trajectories, self.reward, wall_s=REWARD_WALL_S)
        return TrajectoryGroup(task=request.task, index=request.index, trajectories=tuple(trajectories))

    async def _member(self, request: GroupRequest, member: int) -> Trajectory:
        log, stop_reason, final_state, error = _Log(), StopReason.ERROR, {}, None
        env = self.definition.make_env()
        deadline = Deadline(self.limits.max_wall_s)
        try:
            try:
                async with deadline:
                    stop_reason = await self._react(env, request, member, log)
                    final_state = env.final_state()
            finally:
                await within(CLOSE_WALL_S, env.close())
        except (WorldError, DeadlineError, TimeoutError) as failure:
            if isinstance(failure, TimeoutError) and not deadline.expired():
                raise  # the environment's own, for instance a socket's
            slow = f"no end after {self.limits.max_wall_s:g} s"
            stop_reason = StopReason.ERROR
            error = TrajectoryError(kind=type(failure).__name__, message=str(failure) or slow)
        trajectory = Trajectory(
            id=f"{request.step}-{request.index}-{member}",
            episode=Episode(
                task=request.task,
                transcript=tuple(log.transcript),
                stop_reason=stop_reason,
                final_state=final_state,
                metrics=dict(log.metrics),
            ),
            turns=(),
            score=Score(value=None, error=f"{error.kind}: {error.message}" if error else None),
            error=error,
        )
        if self.reward.is_group:
            return trajectory
        return await score_trajectory(trajectory, self.reward, wall_s=REWARD_WALL_S)

    async def _react(self, env: Env, request: GroupRequest, member: int, log: _Log) -> StopReason:
        """The loop of rollout/agent.py, with text in the place of token ids."""
        budget = Budget(limits=self.limits, context_length=self.limits.max_total_tokens)
        log.transcript.extend(await env.reset(request.task))
        num_tokens = 0
        while (stop_reason := budget.open_turn(num_tokens)) is None:
            seed = request_seed(self.run_seed, request.step, request.index, member, len(log.said))
            reply = await self.endpoint.say(
                chat_messages(log.transcript, log.said, env.tools),
                max_tokens=budget.max_tokens,
                temperature=request.temperature,
                top_p=request.filters.top_p,
                seed=seed % 2**SEED_BITS,
            )
            num_tokens = reply.num_tokens
            action = assistant_message(reply.text, env.tools, first_id=budget.num_tool_calls)
            log.said.append(reply.text)
            log.transcript.append(action)
            said = Completion(token_ids=(), logprobs=(), version_spans=(), finish_reason=reply.finish_reason)
            if stop_reason := budget.close_turn(said, action):
                return stop_reason
            result = await env.step(action)
            log.transcript.extend(result.messages)
            for name, value in {**result.metrics, "step_reward": result.reward}.items():
                log.metrics[name] += value
            if result.done:
                return StopReason.ANSWERED
        return stop_reason


@dataclass(slots=True)
class _Log:
    """What has happened in one episode."""

    transcript: list[Message] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    metrics: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
