"""The environment protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from envs.messages import Message, StepResult, Task, ToolSpec


class WorldError(Exception):
    """The world failed (sandbox, tool server, network), not the policy.

    Raised by an environment from reset or step. Where `retryable` is true and attempts are left, the task is
    played again in a fresh environment; otherwise the episode is recorded with this error and left out of its
    group's baseline and of the loss. The run goes on. Any other exception is a bug and stops the run.

    A subclass sets `retryable` to False for a failure that another attempt would meet again.
    """

    retryable: ClassVar[bool] = True


class ToolServerError(WorldError):
    """What a tool stands on (a server, the network) is down. A ToolError is the policy's own doing."""


class EngineRequestError(WorldError):
    """The engine failed at one request, or gave it up, and lives on. Its death ends a run."""


class RewardError(WorldError):
    """What a reward stands on failed; its episode is unscored.

    An episode that is over is not played again to be scored: another attempt is the reward's own affair.
    """

    retryable = False


class JudgeError(RewardError):
    """A judge did not answer, or not in a form that can be read; `said` is its text."""

    def __init__(self, problem: str, said: str = "") -> None:
        super().__init__(problem)
        self.said = said


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
