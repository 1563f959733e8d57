"""Playing an episode with a scripted player, as text: reference episodes, checks, tests."""

from __future__ import annotations

from collections.abc import Callable

from envs.base import Env
from envs.episode import Episode
from envs.messages import StopReason, Task
from envs.registry import Player
from envs.tools import assistant_message


async def play(make_env: Callable[[], Env], task: Task, player: Player, *, max_turns: int) -> Episode:
    """One episode of `player`, MAX_TURNS when it has not answered after `max_turns` messages.

    Whatever the player or the environment raises propagates, after the environment was closed.
    """
    env = make_env()
    try:
        transcript = list(await env.reset(task))
        metrics: dict[str, float] = {}
        num_calls = 0
        stop_reason = StopReason.MAX_TURNS
        for _ in range(max_turns):
            action = assistant_message(player(task, tuple(transcript)), env.tools, first_id=num_calls)
            num_calls += len(action.tool_calls)
            result = await env.step(action)
            transcript += [action, *result.messages]
            for name, value in result.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
            if result.done:
                stop_reason = StopReason.ANSWERED
                break
        return Episode(
            task=task,
            transcript=tuple(transcript),
            stop_reason=stop_reason,
            final_state=env.final_state(),
            metrics=metrics,
        )
    finally:
        await env.close()
