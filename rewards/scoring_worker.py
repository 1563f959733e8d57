"""One child process with a user's reward in it, as the process that asks for scores sees it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Self

from envs.deadline import in_thread, within
from envs.sandbox.policy import current_policy
from rewards.interpreters import ROOT, executable_of
from rewards.scoring_child import HEADER_BYTES

ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from rewards.scoring_child import main; main()"

START_S = 120.0
"""For a child to come up and import the user's code, which may be torch."""

END_S = 3.0
"""For a child to end itself; then it is ended."""

TAIL_BYTES = 4096
"""Of what user code prints, the last bytes are kept, for the case that it ends its process."""

MAX_MESSAGE_BYTES = 1 << 28


class CrashedError(Exception):
    """The child ended, or what it said was no message."""


def _launch(python: str) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """A fresh interpreter in a session of its own, our end of its channel, the pipe of what it prints.

    Raises:
        OSError: it could not be started.
    """
    ours, theirs = socket.socketpair()
    output, output_end = os.pipe()
    os.set_blocking(output, False)
    try:
        with theirs:
            process = subprocess.Popen(
                [executable_of(python), "-c", ENTRY, str(ROOT), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        os.close(output)
        raise
    finally:
        os.close(output_end)
    return process, ours, output


class Worker:
    """A child process, started by `start`; one question at a time. What its user code prints is dropped."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.facts: dict[str, Any] = {}
        self._process = process
        self._output: int | None = output
        self._tail = b""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        asyncio.get_running_loop().add_reader(output, self._drain)

    @classmethod
    async def start(cls, spec: str, python: str = "") -> Self:
        """A worker that has loaded `spec`, or was refused it: see its `facts`. `python`: of another Python.

        Raises:
            CrashedError: the child ended while it imported the user's code.
            DeadlineError: it was not up within START_S.
            OSError: it could not be started.
        """
        process, ours, output = _launch(python)
        worker = cls(process, output)
        try:
            worker._reader, worker._writer = await asyncio.open_connection(sock=ours)
            path = [] if python else sys.path  # another Python has packages of its own
            policy = asdict(current_policy())  # code that the reward runs has the sandbox of this process
            worker.facts = await worker.ask({"spec": spec, "path": path, "sandbox": policy}, START_S)
        except BaseException:
            await worker.end()
            raise
        return worker

    async def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one message. After an exception the worker is of no more use: `end` it.

        Raises:
            CrashedError: the child ended instead of answering.
            DeadlineError: it had not answered after `timeout_s` seconds.
        """
        try:
            return await within(timeout_s, self._exchange(message))
        except (OSError, EOFError, ValueError) as error:
            raise CrashedError(await self._last_words()) from error

    async def _exchange(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if self._reader is None or self._writer is None:
            raise EOFError("not connected")
        data = json.dumps(message).encode("ascii")
        self._writer.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
        await self._writer.drain()
        size = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        return json.loads(await self._reader.readexactly(size))

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def end(self) -> None:
        """End the child, its process group and whatever it has left behind; safe to call twice."""
        if self._writer is not None:
            self._writer.close()
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)  # the guard kills the others, then ends
        if not await self._ended():
            if worker := self.facts.get("worker"):
                with suppress(ProcessLookupError):
                    os.killpg(worker, signal.SIGKILL)
            self._process.kill()
            await self._ended()
        self._stop_draining()

    async def _ended(self) -> bool:
        """Whether the child has ended, within END_S."""
        with suppress(subprocess.TimeoutExpired):
            await in_thread(partial(self._process.wait, END_S))
        return not self.is_alive

    async def _last_words(self) -> str:
        """How the child ended, and what it printed last."""
        if not await self._ended():
            return "its process sent what is no answer"
        self._drain()
        code = self._process.returncode
        number = code - 128 if code > 128 else -code
        known = number in set(signal.Signals)
        how = f"was killed by {signal.Signals(number).name}" if known else f"ended with exit status {code}"
        printed = self._tail.decode("utf-8", "replace").strip()
        return f"its process {how}" + (f"; printed last:\n{printed}" if printed else "")

    def _drain(self) -> None:
        """Take what was printed, so that no full pipe holds user code up."""
        while self._output is not None:
            try:
                data = os.read(self._output, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._stop_draining()
                return
            self._tail = (self._tail + data)[-TAIL_BYTES:]

    def _stop_draining(self) -> None:
        if self._output is not None:
            asyncio.get_running_loop().remove_reader(self._output)
            os.close(self._output)
            self._output = None
