"""The ReAct loop: one episode, and a group of episodes of one task."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, TypeVar

from envs.base import EngineRequestError, Env, WorldError
from envs.deadline import Deadline, DeadlineError, within
from envs.episode import Episode, Score
from envs.messages import Message, StepResult, StopReason, Task
from envs.policy import NO_FILTERS, Completion, Policy, SamplingFilters, SamplingParams
from envs.registry import EnvDefinition
from rewards.base import Sample, Scorer
from rollout.limits import Budget, Limits
from rollout.renderer import ChatMLRenderer
from rollout.retry import RetryPolicy, with_attempts
from rollout.trajectory import Trajectory, TrajectoryError, TrajectoryGroup, Turn

T = TypeVar("T")

TIMED_PARTS = ("generate", "tools", "reward")
"""The parts of `Trajectory.timings_s`."""

CLOSE_WALL_S = 30.0
"""An environment that has not closed after this time has failed."""

ONE_RETRY = RetryPolicy()


class SlowStartError(WorldError):
    """The wall-time limit passed before the policy had said anything: the world or the engine was slow."""

    retryable = False  # the time for another attempt has passed


class AbortedError(EngineRequestError):
    """The engine gave up a request that it had accepted."""


class CloseError(WorldError):
    """The environment did not close in time. The episode was over: it stands."""


def request_seed(run_seed: int, step: int, task_index: int, member: int, turn: int) -> int:
    """The seed of one request: a pure function of its place in the run, in [0, 2**63).

    63 bits fit the signed integer in which vLLM keeps seeds (-1 is "none" to it). torch's CPU generator reads
    only the low 32 of them, into which BLAKE2b mixes every field.
    """
    place = struct.pack(">5q", run_seed, step, task_index, member, turn)
    return int.from_bytes(blake2b(place, digest_size=8).digest(), "big") >> 1


async def run_group(
    task: Task,
    definition: EnvDefinition,
    policy: Policy,
    renderer: ChatMLRenderer,
    reward: Scorer,
    *,
    index: int,
    group_size: int,
    trajectory_id: Callable[[int], str],
    request_seed: Callable[[int, int], int],
    limits: Limits,
    context_length: int,
    temperature: float = 1.0,
    filters: SamplingFilters = NO_FILTERS,
    reward_wall_s: float = 30.0,
    retry: RetryPolicy = ONE_RETRY,
    step: int = 0,
) -> TrajectoryGroup:
    """`group_size` episodes of one task, all running at once, each scored as it ends.

    One that the world spoiled is played again as `retry` says, if it can begin within max_wall_s of the
    first attempt. A reward that compares the members of a group is asked once, when all have ended.

    `index` is the task's place in the task stream; `trajectory_id(member)` names a trajectory and
    `request_seed(member, turn)` seeds a request. A bug in one member cancels the others and is raised.
    """

    async def run_member(member: int) -> Trajectory:
        def attempt() -> Awaitable[Trajectory]:
            return run_episode(
                task,
                definition.make_env(),
                policy,
                renderer,
                trajectory_id=trajectory_id(member),
                request_seed=partial(request_seed, member),
                limits=limits,
                context_length=context_length,
                temperature=temperature,
                filters=filters,
            )

        trajectory = await with_attempts(attempt, retry, deadline_s=limits.max_wall_s)
        return trajectory if reward.is_group else (await score_all([trajectory]))[0]

    score_all = partial(score_trajectories, reward=reward, wall_s=reward_wall_s, step=step)
    await reward.start()
    async with asyncio.TaskGroup() as members:
        running = [members.create_task(run_member(member)) for member in range(group_size)]
    trajectories = [run.result() for run in running]
    scored = await score_all(trajectories) if reward.is_group else trajectories
    return TrajectoryGroup(task=task, index=index, trajectories=tuple(scored))


async def run_episode(
    task: Task,
    env: Env,
    policy: Policy,
    renderer: ChatMLRenderer,
    *,
    trajectory_id: str,
    request_seed: Callable[[int], int],
    limits: Limits,
    context_length: int,
    temperature: float = 1.0,
    filters: SamplingFilters = NO_FILTERS,
) -> Trajectory:
    """One episode, not scored yet; `env` is closed whatever happens. `request_seed(turn)` seeds a request.

    A world that failed is recorded in `Trajectory.error`, one that failed at closing in `close_error`: the
    episode was over by then, and stands. Any other exception is a bug and is raised.
    """
    log = _Log()
    budget = Budget(limits=limits, context_length=context_length)

    async def react() -> StopReason:
        """ReAct (arXiv 2210.03629): act on all that was said so far, observe, act again."""
        opening = await log.timed("tools", env.reset(task))
        log.transcript.extend(opening)
        context_ids = renderer.render(opening)
        while (stop_reason := budget.open_turn(len(log.token_ids) + len(context_ids))) is None:
            sampling = SamplingParams(
                max_tokens=budget.max_tokens,
                temperature=temperature,
                filters=filters,
                seed=request_seed(len(log.turns)),
                stop_token_ids=renderer.stop_token_ids,
                num_routed=max(len(log.token_ids) - 1, 0),  # the last one sampled never ran
            )
            completion = await log.timed("generate", policy.complete(log.token_ids + context_ids, sampling))
            action = renderer.parse(completion.token_ids, env.tools, first_call=budget.num_tool_calls)
            log.act(context_ids, completion, action)
            if stop_reason := budget.close_turn(completion, action):
                return stop_reason
            result = await log.timed("tools", env.step(action))
            log.observe(result)
            if result.done:
                return StopReason.ANSWERED
            closed = renderer.is_closed(completion.token_ids)
            context_ids = renderer.render_continuation(result.messages, closed=closed)
        return stop_reason

    final_state: Mapping[str, Any] = {}
    error = None
    try:
        stop_reason = await _until(limits.max_wall_s, react(), log)
        final_state = env.final_state()
    except WorldError as failure:
        stop_reason, error = StopReason.ERROR, _noted(failure)
    except BaseException:
        with suppress(WorldError, DeadlineError):  # neither hides what is raised
            await within(CLOSE_WALL_S, env.close())
        raise
    close_error = await log.timed("tools", _close(env))
    return Trajectory(
        id=trajectory_id,
        episode=Episode(
            task=task,
            transcript=tuple(log.transcript),
            stop_reason=stop_reason,
            final_state=final_state,
            metrics=dict(log.metrics),
        ),
        turns=tuple(log.turns),
        score=Score(value=None, error=f"{error.kind}: {error.message}" if error else None),
        error=error,
        timings_s=dict(log.timings_s),
        call_s=log.call_s,
        close_error=close_error,
    )


def _noted(failure: WorldError) -> TrajectoryError:
    return TrajectoryError(kind=type(failure).__name__, message=str(failure), retryable=failure.retryable)


async def score_trajectory(trajectory: Trajectory, reward: Scorer, *, wall_s: float) -> Trajectory:
    """`trajectory` with its score."""
    return (await score_trajectories([trajectory], reward, wall_s=wall_s))[0]


async def score_trajectories(
    trajectories: Sequence[Trajectory], reward: Scorer, *, wall_s: float, step: int = 0
) -> list[Trajectory]:
    """`trajectories` with their scores, from one call; of one whose world failed the reward is not asked."""
    usable = [trajectory for trajectory in trajectories if trajectory.error is None]
    if not usable:
        return list(trajectories)
    samples = [
        Sample(
            id=trajectory.id,
            episode=trajectory.episode,
            token_ids=tuple(chain.from_iterable(turn.completion.token_ids for turn in trajectory.turns)),
            step=step,
        )
        for trajectory in usable
    ]
    started = time.perf_counter()
    scores = await reward.score(samples, timeout_s=wall_s)
    seconds = (time.perf_counter() - started) / len(usable)
    scored = {
        trajectory.id: replace(trajectory, score=score, timings_s={**trajectory.timings_s, "reward": seconds})
        for trajectory, score in zip(usable, scores, strict=True)
    }
    return [scored.get(trajectory.id, trajectory) for trajectory in trajectories]


@dataclass(slots=True)
class _Log:
    """What has happened in one episode, so that a failure half-way loses nothing of it."""

    transcript: list[Message] = field(default_factory=list)
    token_ids: tuple[int, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    metrics: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    timings_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMED_PARTS, 0.0))
    call_s: dict[str, float] = field(default_factory=dict)

    def act(self, context_ids: tuple[int, ...], completion: Completion, action: Message) -> None:
        parent = len(self.turns) - 1 if self.turns else None
        self.turns.append(Turn(parent=parent, context_ids=context_ids, completion=completion))
        self.token_ids += context_ids + completion.token_ids
        self.transcript.append(action)
        if completion.finish_reason == "abort":  # noted first: its tokens were sampled
            raise AbortedError(
                f"turn {len(self.turns) - 1} was given up after {len(completion.token_ids)} tokens"
            )

    def observe(self, result: StepResult) -> None:
        self.transcript.extend(result.messages)
        self.call_s.update(result.call_s)
        self.turns[-1] = replace(self.turns[-1], reward=result.reward)
        for name, value in {**result.metrics, "step_reward": result.reward}.items():
            self.metrics[name] += value

    async def timed(self, part: str, work: Awaitable[T]) -> T:
        started = time.perf_counter()
        try:
            return await work
        finally:
            self.timings_s[part] += time.perf_counter() - started


async def _until(wall_s: float, react: Awaitable[StopReason], log: _Log) -> StopReason:
    """The stop reason of `react`, which is cancelled after `wall_s` seconds.

    Waits for the sandboxes of others do not count (envs.deadline.paused).
    """
    deadline = Deadline(wall_s)
    try:
        async with deadline:
            return await react
    except TimeoutError as error:
        if not deadline.expired():  # the environment's own, for instance a socket's
            raise
        if not log.turns:
            raise SlowStartError(f"the policy had said nothing after {wall_s:g} s") from error
        return StopReason.MAX_WALL_S


async def _close(env: Env) -> TrajectoryError | None:
    """Close `env`; the world's failure in it, if any."""
    try:
        await within(CLOSE_WALL_S, env.close())
    except WorldError as failure:
        return _noted(failure)
    except DeadlineError:
        return _noted(CloseError(f"the environment did not close within {CLOSE_WALL_S:g} s"))
    return None
