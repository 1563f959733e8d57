"""ToolEnv: a multi-turn environment whose tools are methods."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any, ClassVar

from envs.messages import Message, StepResult, Task, ToolSpec
from envs.tools import MAX_OUTPUT_CHARS, Tool, dispatch


class _Phase(Enum):
    NEW = auto()
    RUNNING = auto()
    DONE = auto()
    CLOSED = auto()


class ToolEnv:
    """The agent calls tools until a message without a call, its answer, ends the episode.

    A subclass marks its tools with `@tool` and may override `setup`, `is_over`, `final_state`, `turn_reward`
    and `teardown`. It draws randomness only from `self.rng`. What is not marked cannot be called by the
    policy, whatever its name.

    Example:
        class Dice(ToolEnv):
            @tool
            def roll(self, sides: int) -> str:
                "Roll one die."
                return str(self.rng.randint(1, sides))
    """

    max_output_chars: ClassVar[int] = MAX_OUTPUT_CHARS  # a longer tool output is cut, and says so
    task: Task
    rng: random.Random
    turn: int  # index of the assistant message that is being answered
    _tool_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
        cls._tool_names = tuple(name for name in names if isinstance(getattr(cls, name, None), Tool))
        for name in cls._tool_names:
            called = getattr(cls, name).spec.name
            if name.startswith("_") or name in {*dir(ToolEnv), *ToolEnv.__annotations__} or name != called:
                raise TypeError(
                    f"{cls.__name__}.{name} cannot be a tool: the name is the environment's own, starts with "
                    f"an underscore, or differs from its function's ({called}); rename it"
                )

    def __init__(self) -> None:
        self._phase = _Phase.NEW

    @property
    def tools(self) -> Sequence[ToolSpec]:
        return tuple(getattr(type(self), name).spec for name in self._tool_names)

    async def reset(self, task: Task) -> Sequence[Message]:
        """Start the episode; once in an environment's life."""
        self._require(_Phase.NEW, "reset")
        self._phase = _Phase.RUNNING
        self.task = task
        # Random(str) hashes the string itself: the same in every process, unlike hash().
        self.rng = random.Random(task.id if task.seed is None else task.seed)
        self.turn = -1
        await self.setup()
        return task.messages

    async def step(self, action: Message) -> StepResult:
        """Run the calls of `action`; a message without calls ends the episode, and so does `is_over`."""
        self._require(_Phase.RUNNING, "step")
        self.turn += 1
        tools = {name: getattr(self, name) for name in self._tool_names}
        result = await dispatch(action.tool_calls, tools, max_output_chars=self.max_output_chars)
        is_over = not action.tool_calls or self.is_over()
        if is_over:
            self._phase = _Phase.DONE
        return replace(result, done=is_over, reward=self.turn_reward() if action.tool_calls else 0.0)

    def is_over(self) -> bool:
        """Whether the turn whose calls have just run ended the episode: a game that is won or lost."""
        return False

    def final_state(self) -> Mapping[str, Any]:
        return {}

    def turn_reward(self) -> float:
        """Shaping reward of the turn whose calls have just run; rows with credit by turn learn from it."""
        return 0.0

    async def close(self) -> None:
        if self._phase is not _Phase.CLOSED:
            started = self._phase is not _Phase.NEW
            self._phase = _Phase.CLOSED
            if started:
                await self.teardown()

    async def setup(self) -> None:
        """Prepare the episode; `self.task` and `self.rng` are set."""

    async def teardown(self) -> None:
        """Release what `setup` took, also when it failed half-way. Runs at most once."""

    def _require(self, phase: _Phase, verb: str) -> None:
        if self._phase is not phase:
            raise RuntimeError(
                f"{type(self).__name__}.{verb}: the environment is {self._phase.name.lower()}, it must be "
                f"{phase.name.lower()}; an environment serves one episode, make a new one for the next"
            )
