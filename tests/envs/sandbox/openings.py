"""Sandboxes for tests: any backend by name, with the options that only tests use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache

from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.choosing import BUILT_IN, BuiltIn
from envs.sandbox.spawning import Launcher


@cache
def old_landlock(abi: int) -> BuiltIn:
    """The landlock backend as it is on a kernel of an older ABI."""
    backend = BuiltIn("landlock", BUILT_IN["landlock"].level)
    backend.launcher = Launcher("landlock", landlock_abi=abi)
    return backend


@asynccontextmanager
async def open_sandbox(
    backend: str,
    limits: Limits | None = None,
    files: Mapping[str, bytes] | None = None,
    *,
    seed: int = 0,
    abi: int = 0,
) -> AsyncIterator[Sandbox]:
    """`Sandbox.open` with a named backend; `abi` above 0 forces that behaviour of Landlock."""
    if abi:
        async with await old_landlock(abi).open(limits or Limits(), files or {}, seed) as box:
            yield box
    else:
        async with Sandbox.open(limits, files=files, backend=backend, seed=seed) as box:
            yield box
