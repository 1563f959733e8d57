"""Signals: the first waits for the step where that can be saved, the second ends the process at once."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.running import HEARS_CTRL_C, ROOT

WORK = """
import asyncio, sys
from recipes.stopping import InterruptedRunError, StopRequest, run_interruptibly

async def work():
    print("ready", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaning up", flush=True)
        await asyncio.sleep(60)

try:
    run_interruptibly(work(), StopRequest(can_save=sys.argv[1] == "can save"))
except InterruptedRunError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("can_save", ["can save", "cannot"])
def test_a_second_signal_ends_at_once_whatever_the_first_waits_for(
    number: signal.Signals, can_save: str
) -> None:
    process = subprocess.Popen(
        [*HEARS_CTRL_C, "-c", WORK, can_save],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        if can_save == "cannot":
            assert process.stdout.readline() == "cleaning up\n"
        else:
            time.sleep(0.5)
            assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert time.monotonic() - sent < 5
        assert process.stderr is not None
        assert ("once more ends at once" in process.stderr.read()) == (can_save == "can save")
    finally:
        process.kill()
        process.communicate()
