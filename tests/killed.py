"""An algorithm file of a user's that kills its run: a machine that fails in a chosen phase of a chosen step.

KILL="PHASE STEP" in the environment; without it the file is the row and nothing else. It is read by the
driver and by the learner's process, as every algorithm file is; it ends the driver, then where it is.
"""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

from rl import checkpoint
from rl.algorithms import ALGORITHMS
from rl.workers import RemoteLearner
from rollout.collector import Collector

ROW = replace(ALGORITHMS["grpo"], name="killed")
PHASES = ("generation", "scoring", "update", "sync", "saving", "renaming", "renamed")
WITHIN_S = 0.05
"""From the call that begins a phase to the kill: all of them take longer."""


def kill() -> None:
    os.kill(int(os.environ["KILL_PID"]), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_call(owner: type, name: str, is_time) -> None:
    """Kill WITHIN_S after the first call of an asynchronous method for which `is_time()`."""
    original = getattr(owner, name)

    async def method(self, *arguments, **named):
        if is_time():
            asyncio.get_running_loop().call_later(WITHIN_S, kill)
        return await original(self, *arguments, **named)

    setattr(owner, name, method)


def follow_steps() -> dict[str, int]:
    """{"step": the step that the driver is in}, from 1; 0 before the first."""
    now, next_groups = {"step": 0}, Collector.next_groups

    async def followed(self: Collector, num_groups: int):
        now["step"] = self.step + 1
        return await next_groups(self, num_groups)

    Collector.next_groups = followed
    return now


def arm(phase: str, step: int) -> None:
    now, folder = follow_steps(), f"step_{step:06d}"
    calls = {
        "generation": (Collector, "run"),
        "scoring": (RemoteLearner, "score"),
        "update": (RemoteLearner, "update"),
        "sync": (RemoteLearner, "publish"),
    }
    if phase in calls:
        kill_in_call(*calls[phase], lambda: now["step"] == step)
    write, rename = checkpoint._write_policy, Path.rename

    def writing(model, tokenizer, target: Path, path: Path) -> None:
        write(model, tokenizer, target, path)
        if phase == "saving" and path.name == folder:
            kill()

    def renaming(path: Path, target: Path) -> Path:
        if phase == "renaming" and Path(target).name == folder:
            kill()
        done = rename(path, target)
        if phase == "renamed" and Path(target).name == folder:
            kill()
        return done

    checkpoint._write_policy, Path.rename = writing, renaming


if "KILL" in os.environ:
    os.environ.setdefault("KILL_PID", str(os.getpid()))  # the driver reads this file first
    chosen, at_step = os.environ["KILL"].split()
    arm(chosen, int(at_step))
