"""A host that is short of something, or a launcher that does not come up: the world's failure, in time."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from envs.sandbox import spawning
from envs.sandbox.base import Limits, Sandbox, SandboxError
from envs.sandbox.choosing import BuiltIn, choose
from envs.sandbox.spawning import Launcher


@contextmanager
def descriptors_left(num: int) -> Iterator[None]:
    """This process may open `num` more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(num):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def said(box: Sandbox) -> str:
    try:
        return (await box.python("print(1)", stdin=b"x", max_result_bytes=9)).stdout
    except SandboxError:
        return "SandboxError"


async def opened() -> str:
    try:
        async with Sandbox.open(files={"a": b"1"}) as box:
            return await said(box)
    except SandboxError:
        return "SandboxError"


async def test_too_few_descriptors_are_the_worlds_failure_wherever_they_run_out():
    await choose()
    seen = []
    async with Sandbox.open(Limits(wall_s=5)) as box:
        for num in range(16):
            with descriptors_left(num):
                seen.append((await opened(), await said(box)))
        assert await said(box) == "1\n"  # nothing of it is left
    assert seen[0] == ("SandboxError", "SandboxError")
    assert seen[-1] == ("1\n", "1\n")
    assert {outcome for pair in seen for outcome in pair} == {"SandboxError", "1\n"}


async def test_a_launcher_that_cannot_be_run_is_the_worlds_failure_and_a_probe_says_it(monkeypatch):
    working = (await choose()).backend
    backend = BuiltIn(working, 3)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxError, match=r"cannot be started.*/nowhere/python"):
        await backend.open(Limits(), {}, 0)
    probe = await backend.probe()
    assert "/nowhere/python" in probe.missing
    with descriptors_left(0):
        assert "Too many open files" in (await backend.probe()).missing


@pytest.mark.alone
async def test_the_event_loop_runs_while_a_launcher_starts(tmp_path: Path, monkeypatch):
    backend = BuiltIn((await choose()).backend, 3)
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    opening = asyncio.create_task(backend.open(Limits(), {}, 0))
    longest = 0.0
    while not opening.done():
        started = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - started)
    monkeypatch.undo()
    await asyncio.gather(opening, return_exceptions=True)
    if not opening.exception():
        await opening.result().close()
    backend.launcher.stop()
    assert longest < 0.8


async def test_a_launcher_that_does_not_read_is_the_worlds_failure_after_a_stated_time(monkeypatch):
    monkeypatch.setattr(spawning, "SEND_S", 0.2)
    launcher = Launcher((await choose()).backend)
    launcher.start()
    os.kill(launcher.pid, signal.SIGSTOP)
    try:
        took_s, end = 0.0, time.monotonic() + 60
        while took_s < 0.1 and time.monotonic() < end:  # until no more fits
            started = time.monotonic()
            launcher.end(0)
            took_s = time.monotonic() - started
        with pytest.raises(SandboxError, match="does not read"):
            launcher.open({"limits": {}})
    finally:
        os.kill(launcher.pid, signal.SIGCONT)
        launcher.stop()
