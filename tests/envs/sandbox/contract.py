"""What every backend of a sandbox must do, as checks that take a way to open one.

For a backend of your own, registered under "whetstone.sandboxes":

    @pytest.mark.parametrize("check", contract.CHECKS)
    async def test_contract(check: str) -> None:
        await contract.run(check, contract.opener("my-backend"))

Each check opens its own sandboxes, and takes from milliseconds to two seconds. The attack programs
(attack_run.py) come on top: a contract says what works, they say what does not.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from envs.sandbox.base import Limits, Sandbox
from tests.envs.sandbox import contract_calls, contract_files, contract_limits
from tests.envs.sandbox.contract_tools import CHECKS, Opens

_WHERE = (contract_calls, contract_files, contract_limits)  # importing them fills CHECKS

DEADLINE_S = 100.0
"""For one check, whatever the machine's load."""


def opener(backend: str, min_level: int = 2) -> Opens:
    """`Sandbox.open` of one backend."""

    def opens(
        limits: Limits | None = None, files: dict[str, bytes] | None = None, *, seed: int = 0
    ) -> AbstractAsyncContextManager[Sandbox]:
        return Sandbox.open(limits, files=files, backend=backend, min_level=min_level, seed=seed)

    return opens


async def run(check: str, opens: Opens) -> None:
    """Run one of CHECKS; AssertionError where the backend does not do what it must."""
    async with asyncio.timeout(DEADLINE_S):
        await CHECKS[check](opens)
