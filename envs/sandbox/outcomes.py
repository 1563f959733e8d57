"""What the messages of a sandbox say about the end of a call, and of the sandbox itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Set
from typing import Any

from envs.sandbox.base import ExecResult, Status


def status_of(done: Mapping[str, Any], events: Set[str], cpu_bound_s: float) -> Status:
    """The status of a call that ended as `done` tells; `events` is what its monitors said meanwhile."""
    code = os.waitstatus_to_exitcode(done["status"])
    if "oom_kill" in events:  # of any of its processes, whatever became of the others
        return "oom"
    was_killed = code == -signal.SIGKILL
    if was_killed and "oom" in events:
        return "oom"
    if was_killed and "disk_limit" in events:
        return "disk_limit"
    if was_killed and "output_limit" in events:
        return "output_limit"
    # SIGXCPU says so; a program that ignores it is killed a second later.
    has_spent_cpu = was_killed and done["cpu_s"] >= cpu_bound_s
    if done["timeout"] or code == -signal.SIGXCPU or has_spent_cpu:
        return "timeout"
    if done["memory"]:
        return "oom"
    if code < 0:
        return "signal"
    return "nonzero" if code else "ok"


def lost_to_memory() -> dict[str, Any]:
    """What a call came to that took the first process along: as if it had ended alone."""
    return {
        "status": signal.SIGKILL,
        "begun": True,
        "timeout": False,
        "memory": True,
        "cpu_s": 0.0,
        "peak_kb": 0,
    }


def after_loss(level: int) -> ExecResult:
    """What every later call comes to: the program's doing, so never the world's failure."""
    return ExecResult(status="oom", stderr="an earlier call ended this sandbox: oom", level=level)


def cause_of(message: Mapping[str, Any]) -> str:
    """Why a sandbox ended, in words."""
    if message["op"] == "failed":
        return str(message["error"])
    status = int(message.get("status", 0))
    return (
        f"its first process was ended by signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else "it exited"
    )
