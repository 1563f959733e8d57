"""Which task comes at which index: a pure function of (seed, index)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from envs.messages import Task
from envs.registry import resolve_env
from envs.splits import Split, task_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStream:
    """An endless sequence of tasks of one environment, level and split.

    `num_tasks` 0 never repeats a task; otherwise the first so many come again and again, each time in another
    order. It has no state: whoever reads it keeps the cursor, and commits it when a group is consumed. So a
    resumed run, another number of engines or a different timing see the same tasks in the same order.
    """

    env: str
    level: int
    run_seed: int
    split: Split = Split.TRAIN
    num_tasks: int = 0

    def __getitem__(self, index: int) -> Task:
        """The task at `index` (any non-negative int)."""
        if index < 0:
            raise IndexError(f"task index {index} given; expected 0 or more")
        if self.num_tasks:
            epoch, place = divmod(index, self.num_tasks)
            order = list(range(self.num_tasks))
            random.Random(f"{self.run_seed}/{epoch}").shuffle(order)
            index = order[place]
        return resolve_env(self.env).make_task(self.level, task_seed(self.split, self.run_seed, index))

    def slice(self, start: int, count: int) -> list[Task]:
        """The tasks at start, start + 1, …, start + count - 1."""
        return [self[index] for index in range(start, start + count)]
