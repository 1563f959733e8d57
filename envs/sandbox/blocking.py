"""Sandboxes for callers without an event loop: one loop in a daemon thread of its own, and a factory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache
from typing import Any, TypeVar

from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError

T = TypeVar("T")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="sandbox", daemon=True).start()
    return loop


def run_blocking(work: Coroutine[Any, Any, T], *, timeout_s: float | None = None) -> T:
    """The result of `work`, from any thread that runs no event loop itself.

    Raises:
        RuntimeError: called from within an event loop, which it would block: `await` the work there.
        TimeoutError: no result within `timeout_s` seconds; the work is cancelled.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        work.close()
        raise RuntimeError("called from a running event loop, which this would block: await the async form")
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result(timeout_s)
    except FutureTimeoutError:
        if not future.done():
            future.cancel()
        raise
    except KeyboardInterrupt:
        future.cancel()
        raise


class Factory:
    """Runs programs one by one, each in a sandbox of its own.

    Example:
        factory(Limits(mem_mb=256)).run("print(1)", timeout=5)["stdout"]      # "1\\n"
    """

    def __init__(self, limits: Limits | None, backend: str, min_level: int | None, allow_weak: bool) -> None:
        self.limits = limits or Limits()
        self.backend = backend
        self.min_level = min_level
        self.allow_weak = allow_weak

    def run(self, code: str, timeout: float | None = None) -> dict[str, Any]:
        """Run `code`: {stdout, stderr, exit_code, timed_out, status}; `timeout` in seconds of wall time.

        `status` is ExecResult's; "sandbox_error" says that the sandbox failed, in `stderr` how. `exit_code`
        is None where a signal or a limit ended the program.

        Raises:
            SandboxTooWeakError: this machine cannot give the level.
            ValueError: `timeout` is not a number above 0.
        """
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (is_number and timeout > 0):
            raise ValueError(
                f"timeout is {timeout!r}; expected seconds above 0, or None for the limits' wall_s"
            )
        result = run_blocking(self._run(code, timeout))
        return {
            "stdout": result.stdout,
            "stderr": result.stderr,
            "exit_code": result.exit_code,
            "timed_out": result.status == "timeout",
            "status": result.status,
        }

    async def _run(self, code: str, timeout_s: float | None) -> ExecResult:
        try:
            opening = Sandbox.open(
                self._limits(timeout_s),
                backend=self.backend,
                min_level=self.min_level,
                allow_weak=self.allow_weak,
            )
            async with opening as box:
                return await box.python(code)
        except SandboxError as error:
            return ExecResult(status="sandbox_error", stderr=str(error))

    def _limits(self, timeout_s: float | None) -> Limits:
        from dataclasses import replace

        return self.limits if timeout_s is None else replace(self.limits, wall_s=timeout_s)


def factory(
    limits: Limits | dict[str, Any] | None = None,
    *,
    backend: str = "auto",
    min_level: int | None = None,
    allow_weak: bool = False,
) -> Factory:
    """A way to run programs, each in a new sandbox: see Factory.run. `limits` may be a mapping of them."""
    return Factory(as_limits(limits), backend, min_level, allow_weak)


def as_limits(limits: Limits | dict[str, Any] | None) -> Limits:
    """Limits from themselves, a mapping of their fields, or the defaults; ValueError for an unknown one."""
    if limits is None or isinstance(limits, Limits):
        return limits or Limits()
    try:
        return Limits(**limits)
    except TypeError as error:
        known = ", ".join(Limits.__dataclass_fields__)
        raise ValueError(f"limits {limits!r}: {error}; the limits are {known}") from error
