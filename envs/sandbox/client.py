"""A sandbox of one of our own backends, seen from the host."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from envs.deadline import in_thread, paused
from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError, SandboxFileError
from envs.sandbox.child import PAYLOAD, RESULT
from envs.sandbox.messages import MAX_MESSAGE
from envs.sandbox.outcomes import after_loss, cause_of, lost_to_memory, status_of
from envs.sandbox.pump import Pump, memory_file, text_of
from envs.sandbox.slots import slot
from envs.sandbox.spawning import START_S, Launcher

GRACE_S = 10.0
"""After a call's deadline, which the first process keeps, for it to say so; then the sandbox is killed."""

_MAX_PATH = 4096  # the kernel's
_INLINE = MAX_MESSAGE // 8  # a larger source text goes by descriptor: JSON makes one byte up to six


class Box(Sandbox):
    """A sandbox of one of our own backends."""

    def __init__(self, launcher: Launcher, limits: Limits, level: int, seed: int) -> None:
        self.backend = launcher.backend
        self.level = level
        self.limits = limits
        self._launcher = launcher
        self._seed = seed
        self._number = 0
        self._socket: socket.socket | None = None
        self._busy = asyncio.Lock()
        self._events: set[str] = set()
        self._oom_kills = 0  # by the kernel, in all calls so far
        self._is_lost = False  # a call took the first process along

    async def start(self, files: Mapping[str, bytes]) -> None:
        """Bring it up and write `files` into it."""
        bounds = {name: getattr(self.limits, name) for name in ("mem_mb", "procs", "disk_mb", "files")}
        request = {"limits": {**bounds, "cpu_s": self.limits.cpu_bound_s}, "seed": self._seed}
        async with slot():
            with paused():
                answer = await self._begun(request)
        if answer["op"] != "ready":
            await self.close()
            problem = "; ".join(filter(None, [cause_of(answer), self._launcher.last_words()]))
            raise SandboxError(f"sandbox {self.backend} did not start: {problem}")
        if files:
            try:
                await self._write(files)
            except BaseException:
                self._abandon()
                raise

    async def _begun(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the sandbox says first."""
        if not self._launcher.is_running:
            await in_thread(self._launcher.start)
        self._number, self._socket = self._launcher.open(request)
        self._socket.setblocking(False)
        try:
            async with asyncio.timeout(START_S):
                return await self._next_message()
        except BaseException as error:
            self._abandon()
            if not isinstance(error, TimeoutError):
                raise
            raise SandboxError(f"sandbox {self.backend} did not start within {START_S:g} s") from None

    async def python(
        self,
        code: str,
        *,
        stdin: bytes = b"",
        wall_s: float | None = None,
        max_result_bytes: int = 0,
        repl: bool = False,
    ) -> ExecResult:
        source = code.encode(errors="surrogatepass")
        inline = {"code": code} if len(source) <= _INLINE else {}
        payload = None if inline else source
        call = {"kind": "session" if repl else "python", **inline}
        return await self._call(
            call, stdin=stdin, payload=payload, wall_s=wall_s, max_result=max_result_bytes
        )

    async def shell(
        self,
        command: Sequence[str] | str,
        *,
        sh: bool = False,
        stdin: bytes = b"",
        wall_s: float | None = None,
    ) -> ExecResult:
        if isinstance(command, str) != sh:
            raise ValueError(
                f"shell({command!r}, sh={sh}): expected a list of words, or a string with sh=True"
            )
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if not argv or not all(isinstance(word, str) and "\0" not in word for word in argv):
            raise ValueError(f"shell({command!r}): expected at least one word, each a str without NUL")
        words = json.dumps(argv).encode()  # as a payload where a message is too small; the kernel may refuse
        call, payload = ({"argv": argv}, None) if len(words) <= MAX_MESSAGE // 2 else ({}, words)
        return await self._call({"kind": "exec", **call}, stdin=stdin, payload=payload, wall_s=wall_s)

    async def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes!r}; expected a whole number above 0")
        _require_short(path)
        call = {"kind": "read", "path": path, "max_bytes": max_bytes}
        result = await self._call(call, max_output=max_bytes)
        if result.status != "ok" or result.result is None:
            raise SandboxFileError(f"cannot read {path!r} of the sandbox: {result.stderr or result.status}")
        return result.result

    async def write_file(self, path: str, data: bytes) -> None:
        await self._write({path: data})

    async def _write(self, files: Mapping[str, bytes]) -> None:
        for path in files:
            if not path or "\0" in path:
                raise ValueError(f"a file of a sandbox is named {path!r}; expected a path")
            _require_short(path)
        header = json.dumps([(path, len(data)) for path, data in files.items()]).encode()
        call = {"kind": "write", "header": len(header)}
        result = await self._call(call, payload=b"".join([header, *files.values()]))
        if result.status != "ok":
            names = ", ".join(map(repr, files))
            raise SandboxFileError(f"cannot write {names} into the sandbox: {result.stderr or result.status}")

    async def close(self) -> None:
        if self._socket is None:
            return
        self._launcher.end(self._number)  # a call that is still running ends with a SandboxError
        async with self._busy:
            if self._socket is None:
                return
            try:
                async with asyncio.timeout(START_S):
                    while (await self._next_message())["op"] != "dead":
                        pass
            except TimeoutError:
                raise SandboxError(
                    f"sandbox {self.backend} was not gone {START_S:g} s after its end"
                ) from None
            finally:
                self._abandon()

    def _abandon(self) -> None:
        """Let go of the sandbox without waiting for its end."""
        self._launcher.end(self._number)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _require_open(self) -> socket.socket:
        if self._socket is None:
            raise SandboxError("this sandbox is closed")
        return self._socket

    async def _next_message(self) -> dict[str, Any]:
        """What the sandbox, or its launcher, says next; "dead" once both have hung up."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._require_open(), MAX_MESSAGE)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        return json.loads(data) if data else {"op": "dead", "status": 0}

    async def _call(
        self,
        call: dict[str, Any],
        *,
        stdin: bytes = b"",
        payload: bytes | None = None,
        wall_s: float | None = None,
        max_result: int = 0,
        max_output: int = 0,
    ) -> ExecResult:
        """Run one call. `max_output`: stdout as bytes in `result`, up to so many."""
        limit_s = self.limits.wall_s if wall_s is None else min(wall_s, self.limits.wall_s)
        if not limit_s > 0:
            raise ValueError(f"wall_s is {wall_s!r}; expected seconds above 0")
        async with self._busy, slot():
            self._require_open()
            try:
                return await self._run(call, stdin, payload, limit_s, max_result, max_output)
            except asyncio.CancelledError:
                self._abandon()
                raise
            except OSError as error:  # of this process: no descriptor is left, for instance
                raise SandboxError(f"a call in sandbox {self.backend} could not be made: {error}") from error

    async def _run(
        self,
        call: dict[str, Any],
        stdin: bytes,
        payload: bytes | None,
        limit_s: float,
        max_result: int,
        max_output: int,
    ) -> ExecResult:
        host = self._require_open()
        if self._is_lost:
            return after_loss(self.level)
        kept = self.limits.output_kb << 10
        self._events.clear()
        with contextlib.ExitStack() as open_files:
            pump = open_files.enter_context(Pump(self._stop_call))
            places = {1: pump.add(max_output or kept), 2: pump.add(kept)}
            if max_result:
                places[RESULT] = pump.add(max_result, is_strict=True)
            if stdin:
                places[0] = open_files.enter_context(memory_file(stdin))
            if payload is not None:
                places[PAYLOAD] = open_files.enter_context(memory_file(payload))
            message = {**call, "op": "run", "wall_s": limit_s, "fds": list(places)}
            started = time.monotonic()
            try:
                socket.send_fds(host, [json.dumps(message).encode()], list(places.values()))
            except OSError as error:
                raise SandboxError(f"sandbox {self.backend} has ended: {error}") from error
            pump.close_writers()
            done = await self._outcome(limit_s)
            before, self._oom_kills = self._oom_kills, self._launcher.oom_kills(self._number)
            self._events |= {"oom_kill"} if self._oom_kills > before else set()
            outputs = pump.finish()
        return self._result(done, outputs, bool(max_result), bool(max_output), time.monotonic() - started)

    def _stop_call(self) -> None:
        """Too much output: a word in mid-call ends it."""
        self._events.add("output_limit")
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(b'{"op": "stop"}')

    async def _outcome(self, limit_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(limit_s + GRACE_S):
                while True:
                    message = await self._next_message()
                    match message["op"]:
                        case "done":
                            return message
                        case "event":
                            self._events.add(message["what"])
                        case "dead" if message.get("oom_kills", 0) > self._oom_kills:
                            self._is_lost = True  # the program's doing: no later call is the world's failure
                            return lost_to_memory()
                        case _:
                            raise SandboxError(
                                f"sandbox {self.backend} ended in mid-call: {cause_of(message)}"
                            )
        except TimeoutError:
            self._launcher.end(self._number)
            raise SandboxError(
                f"sandbox {self.backend} did not answer {GRACE_S:g} s after its call's deadline"
            ) from None

    def _result(
        self,
        done: dict[str, Any],
        outputs: Sequence[tuple[bytes, bool]],
        has_result: bool,
        is_binary: bool,
        wall_s: float,
    ) -> ExecResult:
        status = done["status"]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        if not done["begun"]:
            raise SandboxError(f"a call in sandbox {self.backend} did not start: {text_of(outputs[1][0])}")
        out, errors, *rest = outputs
        result = rest[0][0] if has_result and not rest[0][1] else None
        return ExecResult(
            status=status_of(done, self._events, self.limits.cpu_bound_s),
            exit_code=code,
            signal=number,
            stdout="" if is_binary else text_of(out[0]),
            stderr=text_of(errors[0]),
            truncated=out[1] or errors[1],
            result=out[0] if is_binary else result,
            wall_s=wall_s,
            cpu_s=done["cpu_s"],
            peak_mb=done["peak_kb"] / 1024,
            level=self.level,
        )


def _require_short(path: str) -> None:
    if len(path.encode(errors="surrogatepass")) >= _MAX_PATH:
        raise SandboxFileError(f"a path of {len(path)} characters is too long for a file of a sandbox")
