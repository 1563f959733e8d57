"""What a sandbox is: its limits, what a call in it gives back, and what a backend must offer.

Level, a name and a promise:
    4  gvisor, docker, a remote service: another kernel (backends that a package registers, see `choosing.py`)
    3  ns, bwrap: no file of the host but listed read-only ones, no network, own processes; one shared kernel
    2  landlock: no file of the host, no socket; process ids are shared, memory and disk bounded by polling
    1  rlimits: limits and deadlines only, **not a security boundary**
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self, runtime_checkable

from envs.base import WorldError
from envs.tools import ToolError

_AT_MOST = {
    "wall_s": 86_400,
    "cpu_s": 86_400,
    "mem_mb": 1 << 20,
    "procs": 4096,
    "disk_mb": 1 << 20,
    "files": 10_000_000,
    "output_kb": 1 << 20,
}
"""What a limit may be: a day, 1 TiB of memory and of disk, 1 GiB of output."""

Status = Literal["ok", "nonzero", "signal", "timeout", "oom", "output_limit", "disk_limit", "sandbox_error"]


class SandboxError(WorldError):
    """The sandbox failed, not the program in it: an episode that meets this is unscored, never 0."""


class SandboxTooWeakError(ValueError):
    """The machine cannot give the level that was asked for; says what is missing and the mend."""


class SandboxFileError(ToolError):
    """A file of the sandbox cannot be read or written as asked: the program's doing, not the world's.

    In a tool its text is the policy's observation.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one sandbox. None of them can be switched off.

    `wall_s` seconds a call, `cpu_s` CPU seconds a process (None: wall_s + 2), `mem_mb` MiB of all its
    processes together, `procs` processes and threads at once, `disk_mb` MiB and `files` inodes of all that it
    writes, `output_kb` KiB kept of each of stdout and stderr. `net` "none" is the only network there is.

    Raises:
        ValueError: a limit is not a number above 0 (None, 0 and inf are not "unlimited"), is more than a day,
            1 TiB (mem_mb, disk_mb), 4096 procs, 10 million files or 1 GiB of output, or net is unknown.
    """

    wall_s: float = 10.0
    cpu_s: float | None = None
    mem_mb: int = 512
    procs: int = 64
    disk_mb: int = 100
    files: int = 20_000
    output_kb: int = 64
    net: Literal["none"] = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "net" or (field.name == "cpu_s" and value is None):
                continue
            is_real = field.name in ("wall_s", "cpu_s")
            if isinstance(value, bool) or not isinstance(value, int | float if is_real else int):
                kind = "a number" if is_real else "a whole number"
                raise ValueError(f"Limits.{field.name} is {value!r}; expected {kind} above 0")
            if not (0 < value < math.inf):
                raise ValueError(
                    f"Limits.{field.name} is {value!r}; expected more than 0 and less than infinity: no "
                    "limit of a sandbox can be switched off"
                )
            if value > _AT_MOST[field.name]:
                raise ValueError(
                    f"Limits.{field.name} is {value!r}; expected at most {_AT_MOST[field.name]}: more is no "
                    "limit"
                )
        if self.net != "none":
            raise ValueError(f"Limits.net is {self.net!r}; expected 'none', the only network there is")

    @property
    def cpu_bound_s(self) -> float:
        """CPU seconds a process."""
        return self.wall_s + 2 if self.cpu_s is None else self.cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What one call came to.

    `status`: ok (exit 0), nonzero, signal (`signal` killed it), timeout (wall_s passed), oom (mem_mb was
    reached), output_limit (it wrote 16 times what is kept, and was stopped), disk_limit (level 2 only: its
    files grew past disk_mb; elsewhere its own write fails), sandbox_error (never the program's fault).
    `stdout` and `stderr` are UTF-8, anything else as backslash escapes, cut to output_kb each (`truncated`)
    and there whatever the status. `result` is what the program wrote to descriptor 3, where it was asked for.
    """

    status: Status
    exit_code: int | None = None
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    result: bytes | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    level: int = 0

    @property
    def is_ok(self) -> bool:
        return self.status == "ok"


class Sandbox(ABC):
    """One open sandbox: one an episode, and another one to grade in. One call at a time; others wait.

    A call is a process of its own, and whatever it started ends with it: state is in files only. Cancelling a
    call closes the sandbox.

    Example:
        async with Sandbox.open(Limits(wall_s=5), files={"data.csv": b"1,2"}) as box:
            result = await box.python("print(open('data.csv').read())")
    """

    backend: str
    level: int
    limits: Limits

    @staticmethod
    def open(
        limits: Limits | None = None,
        *,
        files: Mapping[str, bytes] | None = None,
        backend: str | None = None,
        min_level: int | None = None,
        allow_weak: bool | None = None,
        seed: int = 0,
    ) -> Opening:
        """A sandbox to enter with `async with` (or `await`), with `files` in it, by path.

        `backend`, `min_level`, `allow_weak`: None is the process's own policy (envs/sandbox/policy.py; auto
        and level 2 where nobody set one). `seed` is that of Python's `random` in every call.

        Raises, on entering:
            SandboxTooWeakError: the machine cannot give `min_level`.
            SandboxError: it could not be opened.
        """
        from envs.sandbox.choosing import Opener
        from envs.sandbox.policy import SandboxPolicy, current_policy

        policy = current_policy()
        asked = SandboxPolicy(
            backend=policy.backend if backend is None else backend,
            min_level=policy.min_level if min_level is None else min_level,
            allow_weak=policy.allow_weak if allow_weak is None else allow_weak,
        )
        return Opener(limits or Limits(), files or {}, asked, seed)

    @abstractmethod
    async def python(
        self,
        code: str,
        *,
        stdin: bytes = b"",
        wall_s: float | None = None,
        max_result_bytes: int = 0,
        repl: bool = False,
    ) -> ExecResult:
        """Run `code` as a script in /work. `wall_s` shortens the limit of this call.

        With `repl` the calls share one namespace, as in an interpreter at a prompt, and what they started
        goes on: until one meets its deadline or a limit (`cpu_s` is the session's), calls `exit()`, or a
        call without `repl` comes. The next one then begins anew.

        With `max_result_bytes` descriptor 3 of the program is a pipe whose content becomes `result`; None
        when it wrote more than that.

        Raises:
            SandboxError: the world failed, or this sandbox was closed; what the program does is a status.
            ValueError: `wall_s` is not above 0.
        """

    @abstractmethod
    async def shell(
        self,
        command: Sequence[str] | str,
        *,
        sh: bool = False,
        stdin: bytes = b"",
        wall_s: float | None = None,
    ) -> ExecResult:
        """Run a program with its arguments; with `sh` a string, by /bin/sh.

        Raises:
            SandboxError: the world failed, or this sandbox was closed; what the program does is a status.
            ValueError: `wall_s` is not above 0, or the command is not words (a string with `sh`).
        """

    @abstractmethod
    async def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """A regular file, opened inside.

        Raises:
            SandboxFileError: there is none, it is something else (a link, a fifo), or it is larger.
            SandboxError: the world failed, or this sandbox was closed.
            ValueError: `max_bytes` is no whole number above 0.
        """

    @abstractmethod
    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file inside, parents included.

        Raises:
            SandboxFileError: that is not possible.
            SandboxError: the world failed, or this sandbox was closed.
            ValueError: `path` is no path.
        """

    @abstractmethod
    async def close(self) -> None:
        """End every process and remove every file of it; SandboxError: they are still there. Idempotent."""

    async def sql(
        self, query: str, *, database: str = "data.db", limits: Mapping[str, Any] | None = None
    ) -> Any:
        """Rows of one read-only statement on a SQLite file of the sandbox (see envs.sandbox.sql).

        Raises:
            SqlError: the statement's fault, by kind; a ToolError, so that a tool may let it pass.
            SandboxError: the world failed, or this sandbox was closed.
            ValueError: `query` is no str, or a limit is wrong.
        """
        from envs.sandbox.sql import query_in

        return await query_in(self, query, database=database, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Opening(Protocol):
    """What `Sandbox.open` gives: `async with` closes the sandbox at its end, `await` hands it over."""

    async def __aenter__(self) -> Sandbox: ...
    async def __aexit__(self, *exc: object) -> None: ...
    def __await__(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a real run of a small program through a backend showed on this machine.

    `missing` is empty where it works; otherwise the feature that is not there, and `mend` what to do.
    `details` goes into the line that a run prints.
    """

    backend: str
    level: int
    missing: str = ""
    mend: str = ""
    details: str = ""


@runtime_checkable
class SandboxBackend(Protocol):
    """A way to isolate. Entry points of the group "whetstone.sandboxes" name objects of this kind."""

    name: str
    level: int

    async def probe(self) -> Probe:
        """Run a small program through it, really; never raises."""
        ...

    async def open(self, limits: Limits, files: Mapping[str, bytes], seed: int) -> Sandbox:
        """A new sandbox; SandboxError when that fails."""
        ...
