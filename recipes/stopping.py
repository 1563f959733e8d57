"""How a run ends that does not reach its verdict: a message, an exit code, no process left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TypeVar

from recipes.warm_start import BaseError
from rl.gates import GateError
from rl.run_lock import RunDirError
from rl.validation import ConfigError
from rollout.failures import world_cause

T = TypeVar("T")

PASS, FAIL, STOPPED, INTERRUPTED = 0, 1, 3, 128 + signal.SIGINT
"""Exit codes, besides BAD_CONFIG of recipes/cli.py.

PASS; FAIL, trained and measured but not better; STOPPED, the run distrusted itself or lost a process, a disk
or its signal; INTERRUPTED by Ctrl-C, and 128 + the number of any other signal. A bug has Python's 1 and a
traceback.
"""

REFUSALS = (ConfigError, RunDirError, BaseError)
"""Raised before a run directory or a process exists; the message has one line a problem."""


@dataclass(slots=True)
class StopRequest:
    """Whether a signal asked the run to end.

    While `can_save` is true the first one waits for the step that is under way, whose end saves a checkpoint;
    otherwise the run cleans up and ends. A second one ends the process at once. `number` is the signal that
    is waited for.
    """

    can_save: bool = False
    number: int = 0


class InterruptedRunError(Exception):
    """The run was asked to end, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@dataclass(frozen=True, slots=True)
class Stop:
    """What a run that had to stop tells its user and its shell."""

    cause: str
    exit_code: int


def stop_of(error: BaseException) -> Stop | None:
    """Why a run had to stop; None for a bug, which is shown with its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return stop_of(InterruptedRunError(signal.SIGINT))
    if isinstance(error, InterruptedRunError):
        return Stop(str(error), error.exit_code)
    cause = str(error) if isinstance(error, GateError) else world_cause(error)
    return None if cause is None else Stop(cause, STOPPED)


def run_interruptibly(work: Coroutine[object, object, T], request: StopRequest | None = None) -> T:
    """`asyncio.run`, in which SIGINT and SIGTERM cancel `work` once and its `finally` clauses still run.

    With a `request`, the first signal may be left to `work` (see StopRequest).

    Raises:
        InterruptedRunError: `work` was ended by such a signal.
    """
    return asyncio.run(_interruptible(work, request or StopRequest()))


async def _interruptible(work: Coroutine[object, object, T], request: StopRequest) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    received: list[int] = []

    def interrupt(number: int) -> None:
        if received:  # nothing more is waited for, clean-up neither; what was saved is whole
            os._exit(128 + number)
        received.append(number)
        if not request.can_save:
            task.cancel()
            return
        request.number = number
        name = signal.Signals(number).name
        print(
            f"\n{name}: this step is finished and saved first; once more ends at once",
            file=sys.stderr,
            flush=True,
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        # Ray's own handler of SIGTERM ends the process with a dump of its stack.
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise InterruptedRunError(received[0]) from None
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
