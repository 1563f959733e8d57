"""Nothing of a sandbox is left: after its end, an error, and the end of those who would clean up."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from typing import IO

import pytest

from envs.sandbox.base import Limits, SandboxError
from envs.sandbox.choosing import BUILT_IN
from tests.envs.sandbox import traces
from tests.envs.sandbox.openings import open_sandbox, require_backend

BACKENDS = ["ns", "landlock", "bwrap"]
DAEMONS = """if True:
    import os, time
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(500)
            os._exit(0)
    open("file", "w").write("x" * 1000)
    os.makedirs("a/b/c")
    os.chmod("a/b", 0)
"""


async def opened_before(backend: str) -> tuple[int, str, int]:
    """The launcher's id, and the mounts and (both processes') descriptors that there are once it runs."""
    await require_backend(backend)
    async with open_sandbox(backend) as box:
        await box.python("1")
    launcher = BUILT_IN[backend].launcher.pid
    return launcher, traces.mounts(), traces.descriptors(launcher)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_nothing_is_left_after_the_end(backend: str) -> None:
    launcher, mounts, descriptors = await opened_before(backend)
    async with open_sandbox(backend) as box:
        await box.python(DAEMONS)
        assert traces.of_launcher(launcher) != []
    assert traces.of_launcher(launcher) == []
    assert traces.mounts() == mounts
    assert traces.closed_again(launcher, descriptors)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_nothing_is_left_after_an_exception(backend: str) -> None:
    launcher, mounts, descriptors = await opened_before(backend)
    with pytest.raises(KeyError):
        await _fail_inside(backend)
    assert traces.of_launcher(launcher) == []
    assert traces.mounts() == mounts
    assert traces.closed_again(launcher, descriptors)


async def _fail_inside(backend: str) -> None:
    async with open_sandbox(backend) as box:
        await box.python(DAEMONS)
        raise KeyError


@pytest.mark.parametrize("backend", BACKENDS)
async def test_nothing_is_left_after_a_cancelled_call(backend: str) -> None:
    launcher, mounts, descriptors = await opened_before(backend)
    async with open_sandbox(backend) as box:
        call = asyncio.create_task(box.python(DAEMONS + "    time.sleep(500)"))
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (
        traces.gone([int(word.split()[1]) for word in traces.of_launcher(launcher) if "process" in word])
        == []
    )
    assert await _soon_nothing(launcher)
    assert traces.mounts() == mounts
    assert traces.closed_again(launcher, descriptors)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_nothing_is_left_after_an_opening_that_was_cancelled(backend: str) -> None:
    launcher, mounts, descriptors = await opened_before(backend)
    for wait_s in (0.0, 0.001, 0.005, 0.02):
        opening = asyncio.create_task(_open_and_close(backend))
        await asyncio.sleep(wait_s)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    for _ in range(100):
        if not traces.of_launcher(launcher):
            break
        await asyncio.sleep(0.05)
    assert traces.of_launcher(launcher) == []
    assert traces.mounts() == mounts
    assert traces.closed_again(launcher, descriptors)


async def _soon_nothing(launcher: int) -> bool:
    end = time.monotonic() + traces.PATIENCE_S
    while traces.of_launcher(launcher) and time.monotonic() < end:  # noqa: ASYNC110 -- of other processes
        await asyncio.sleep(0.05)
    return traces.of_launcher(launcher) == []


async def _open_and_close(backend: str) -> None:
    async with open_sandbox(backend, files={"a": b"1"}) as box:
        await box.python("1")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
async def test_nothing_adds_up_over_many_sandboxes(backend: str) -> None:
    launcher, mounts, descriptors = await opened_before(backend)
    for _ in range(10 if backend == "bwrap" else 30):
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(_open_and_close(backend))
    assert traces.of_launcher(launcher) == []
    assert traces.mounts() == mounts
    assert traces.closed_again(launcher, descriptors)


def started(backend: str, mark: str) -> tuple[subprocess.Popen[str], int]:
    """A host process in mid-call, and its launcher's id."""
    command = [sys.executable, "-m", "tests.envs.sandbox.held_open", backend, mark]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out: IO[str] | None = host.stdout
    assert out is not None
    return host, int(out.readline())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_is_left_of_a_host_that_was_killed(backend: str, number: signal.Signals) -> None:
    await require_backend(backend)
    mark, mounts = secrets.token_hex(8), traces.mounts()
    host, launcher = await asyncio.to_thread(started, backend, mark)
    assert len(traces.with_mark(mark)) > 4
    host.send_signal(number)
    host.wait(20)
    assert traces.gone([launcher, *traces.with_mark(mark)]) == []
    assert traces.folders(launcher) == []
    assert traces.mounts() == mounts


@pytest.mark.parametrize("backend", BACKENDS)
async def test_nothing_is_left_of_a_launcher_that_was_killed(backend: str) -> None:
    await require_backend(backend)
    mark, mounts = secrets.token_hex(8), traces.mounts()
    host, launcher = await asyncio.to_thread(started, backend, mark)
    try:
        os.kill(launcher, signal.SIGKILL)
        assert traces.gone([launcher, *traces.with_mark(mark)]) == []
    finally:
        host.kill()
        host.wait()
    async with open_sandbox(backend) as box:
        await box.python("1")
    BUILT_IN[backend].launcher.stop()
    async with open_sandbox(backend):  # a launcher that starts removes what an earlier one could not
        assert traces.folders(launcher) == []
    assert traces.mounts() == mounts


async def test_a_launcher_that_was_killed_is_the_world_s_failure_and_another_takes_its_place() -> None:
    await require_backend("ns")
    async with open_sandbox("ns", Limits(wall_s=60)) as box:
        call = asyncio.create_task(box.python("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        os.kill(BUILT_IN["ns"].launcher.pid, signal.SIGKILL)
        with pytest.raises(SandboxError):
            await asyncio.wait_for(call, 20)
    async with open_sandbox("ns") as box:
        assert (await box.python("print(1)")).stdout == "1\n"
