"""What every part inside a sandbox knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a call of this sandbox meets, whatever the backend that made it.

    `kill_all` ends every process of the sandbox but the first. `call_ruleset` is a Landlock ruleset for calls
    alone (-1: none), `call_filter` a seccomp filter for them: they then cannot reach the first process.
    `oom_score` is a descriptor of the first process's own oom_score_adj (-1: none): with it the kernel ends
    calls first. `dies_with_parent`: a call ends with the first process, where no namespace sees to it.
    """

    home: str
    temp: str
    env: dict[str, str]
    paths: list[str]
    executable: str
    seed: int
    mem_mb: int
    nproc: int
    disk_mb: int
    cpu_s: float
    kill_all: Callable[[], None]
    call_ruleset: int = -1
    call_filter: bytes = b""
    oom_score: int = -1
    dies_with_parent: bool = False
