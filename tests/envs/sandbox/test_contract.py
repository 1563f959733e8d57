"""Every backend keeps the contract (contract.py), and limits cannot be switched off."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from envs.sandbox import usage
from envs.sandbox.base import Limits, SandboxError
from envs.sandbox.choosing import BUILT_IN
from tests.envs.sandbox import contract
from tests.envs.sandbox.contract_tools import Opens
from tests.envs.sandbox.openings import open_sandbox, require_backend

BACKENDS = ["ns", "landlock", "bwrap"]
OLD = [pytest.param(f"landlock-abi-{abi}", marks=pytest.mark.slow) for abi in (5, 3, 1)]


async def opener(backend: str) -> Opens:
    name, _, abi = backend.partition("-abi-")
    await require_backend(name)
    if not abi:
        return contract.opener(name)
    return lambda limits=None, files=None, *, seed=0: open_sandbox(
        name, limits, files, seed=seed, abi=int(abi)
    )


@pytest.mark.parametrize("backend", [*BACKENDS, *OLD])
@pytest.mark.parametrize("check", contract.CHECKS)
async def test_a_backend_keeps_the_contract(check: str, backend: str) -> None:
    if check == "a_signal_is_told" and "-abi-" in backend:
        pytest.skip("before ABI 6 of Landlock a call has no signals")
    await contract.run(check, await opener(backend))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_end_of_the_first_process_is_the_world_s(backend: str) -> None:
    opens = await opener(backend)
    async with opens() as box:
        call = asyncio.create_task(box.python("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        for pid in usage.children(BUILT_IN[backend].launcher.pid):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="ended in mid-call"):
            await asyncio.wait_for(call, 20)
    async with opens() as box:
        assert (await box.python("print(1)")).stdout == "1\n"


@pytest.mark.parametrize("name", ["wall_s", "cpu_s", "mem_mb", "procs", "disk_mb", "files", "output_kb"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "5"])
def test_no_limit_can_be_switched_off(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Limits.{name} is "):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["wall_s", "mem_mb", "procs", "disk_mb", "files", "output_kb", "net"])
def test_none_is_no_limit_s_value(name: str) -> None:
    with pytest.raises(ValueError, match=f"Limits.{name} is None"):
        Limits(**{name: None})


@pytest.mark.parametrize("name", ["mem_mb", "procs", "disk_mb", "files", "output_kb"])
def test_what_is_counted_is_whole(name: str) -> None:
    with pytest.raises(ValueError, match="a whole number above 0"):
        Limits(**{name: 1.5})
