"""calc whose tools answer after random waits: a user's environment file of the tests.

LATENCY in the environment seeds the waits; they decide who shares a batch with whom, and nothing else.
"""

import asyncio
import os
import random
from dataclasses import replace

from envs.messages import Message, StepResult
from envs.tasks import calc

MAX_WAIT_S = 0.05
WAITS = random.Random(os.environ.get("LATENCY"))


class LateCalc(calc.CalcEnv):
    async def step(self, action: Message) -> StepResult:
        await asyncio.sleep(WAITS.random() * MAX_WAIT_S)
        return await super().step(action)


ENV = replace(calc.ENV, make_env=LateCalc)
