"""The environment protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from envs.messages import Message, StepResult, Task, ToolSpec


class WorldError(Exception):
    """The world failed (sandbox, tool server, network), not the policy.

    Raised by an environment from reset or step. The episode is recorded with this error, left out of its
    group's baseline and of the loss; the run goes on. Any other exception is a bug and stops the run.
    """


@runtime_checkable
class Env(Protocol):
    """One episode of one task. Single-use and async; draws randomness only from `random.Random(task.seed)`.

    The order of calls is reset, step*, final_state, close; close is called exactly once, also after an error.
    An environment never sees tokens and never touches global random state.
    """

    @property
    def tools(self) -> Sequence[ToolSpec]:
        """The tools on offer. Constant over the episode, known before reset."""
        ...

    async def reset(self, task: Task) -> Sequence[Message]:
        """The opening messages (task.messages for most environments)."""
        ...

    async def step(self, action: Message) -> StepResult:
        """React to one assistant message, whose `tool_calls` are parsed already."""
        ...

    def final_state(self) -> Mapping[str, Any]:
        """What grading needs of the world, as JSON-able values."""
        ...

    async def close(self) -> None:
        """Release what the episode holds."""
        ...
