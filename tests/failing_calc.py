"""calc in a world that fails: a user's environment file of the tests.

FAILS in the environment says how, always in the first step, when the policy has spoken:
    some        one task in three always, as a sandbox that dies; of one in three the first episode alone, as
                a tool server that is back soon
    after N     every episode, once N have begun in this process
"""

import os
from collections import Counter
from dataclasses import replace

from envs.base import ToolServerError
from envs.messages import Message, StepResult
from envs.sandbox.base import SandboxError
from envs.tasks import calc

FAILS = os.environ.get("FAILS", "some")
BEGUN: Counter[str] = Counter()


class FailingCalc(calc.CalcEnv):
    async def reset(self, task):
        self.task = task
        BEGUN[task.id] += 1
        self.is_first = BEGUN[task.id] == 1
        return await super().reset(task)

    async def step(self, action: Message) -> StepResult:
        if FAILS.startswith("after") and BEGUN.total() > int(FAILS.split()[1]):
            raise SandboxError("no space left in /tmp")
        if FAILS == "some" and self.task.seed % 3 == 0:
            raise SandboxError("the sandbox died")
        if FAILS == "some" and self.task.seed % 3 == 1 and self.is_first:
            raise ToolServerError("the calculator's server restarts")
        return await super().step(action)


ENV = replace(calc.ENV, make_env=FailingCalc)
