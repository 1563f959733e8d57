"""A model behind an OpenAI-compatible chat endpoint, as an agent: text in, text out, and no token ids.

It can be evaluated, not trained. The model is told of its tools in a system message and calls them as text
(envs/tools.py), so it needs no function calling; what a tool says comes back as a user's message.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from envs.base import Env, WorldError
from envs.deadline import DeadlineError, within
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
SEED_BITS = 31  # of a request's seed: what every server takes


class EndpointError(WorldError):
    """The endpoint failed or was too slow; the message never holds the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """Where the model is and how long to wait for it.

    `request_s` is the deadline of one attempt, in seconds; one that failed in a way that may pass (no
    connection, too slow, status 408, 409, 429 or 5xx) is made again at most `num_retries` times, after a
    pause that doubles each time or that the server asks for.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    request_s: float = 60.0
    num_retries: int = 3

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"endpoint {_without_user(self.url)!r}: expected an address like http://localhost:8000/v1"
            )
        if parts.username is not None:
            raise ValueError(
                f"endpoint {_without_user(self.url)!r} holds a user name or password; a key is given by an "
                "environment variable (--endpoint-key-variable)"
            )


def _without_user(url: str) -> str:
    scheme, mark, rest = url.rpartition("://")
    return scheme + mark + rest.rpartition("@")[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model said. `num_tokens` of prompt and reply together; 0 where the server does not tell."""

    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int


class ChatEndpoint:
    """Asks the endpoint for one message after another; every wait has a deadline."""

    def __init__(self, spec: EndpointSpec) -> None:
        import openai  # a second to import, for whoever has an endpoint

        self.spec = spec
        self._errors = openai.OpenAIError
        self._client = openai.AsyncOpenAI(
            base_url=spec.url,
            api_key=spec.key or "none",  # the client insists on one; servers of one's own ask for none
            timeout=spec.request_s,
            max_retries=spec.num_retries,
        )

    async def say(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> Reply:
        """The model's next message. Raises EndpointError."""
        try:
            answer: Any = await self._client.chat.completions.create(
                model=self.spec.model,
                messages=list(messages),  # pyright: ignore[reportArgumentType]  (the client's own dicts)
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            )
            choice, usage = answer.choices[0], answer.usage
            finish = "length" if choice.finish_reason == "length" else "stop"
            num_tokens = usage.total_tokens if usage else 0
            return Reply(text=choice.message.content or "", finish_reason=finish, num_tokens=num_tokens)
        except self._errors as error:
            raise EndpointError(self._describe(f"{type(error).__name__}: {error}")) from None
        except (AttributeError, IndexError, TypeError) as error:  # JSON, but no chat completion
            raise EndpointError(self._describe(f"its answer is no chat completion ({error})")) from None

    def _describe(self, problem: str) -> str:
        # A server may quote the key that it did not like.
        if self.spec.key:
            problem = problem.replace(self.spec.key, "[key]")
        return f"endpoint {self.spec.url}, model {self.spec.model}: {problem}"

    async def check(self) -> None:
        """Ask for one token, so that a wrong address, key or model is known before the first episode."""
        hello = [{"role": "user", "content": "Hello"}]
        await self.say(hello, max_tokens=1, temperature=1.0, top_p=1.0, seed=0)

    async def close(self) -> None:
        await self._client.close()


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
        deadline = asyncio.timeout(self.limits.max_wall_s)
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
