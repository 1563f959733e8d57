"""Settings of the world that episodes meet: where model-written code runs, and a reward of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from envs.sandbox.policy import SandboxPolicy
from rl.overrides import Range


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """The part of a Config that says how the world around the policy is set up."""

    sandbox: str = "auto"
    """Where environments run model-written code: ns, bwrap, landlock, rlimits, or one that a package
    registers. auto: the strongest of ours that works here (python -m envs.sandbox.choosing lists them)."""
    sandbox_min_level: Annotated[int, Range(1, 4)] = 2
    """Refuse to start where the sandbox is weaker: 3 has its own mounts, processes and network, 2 shares
    processes with the host, 1 is no boundary (envs/sandbox/base.py)."""
    allow_weak_sandbox: bool = False
    """One half of the consent to level 1; WHETSTONE_ALLOW_WEAK_SANDBOX=1 in the environment is the other."""

    reward_python: str = ""
    """Path of the Python (3.11 or newer) that a reward of your own runs under, as my_venv/bin/python: its
    packages may be others than ours, which it need not have. Empty: this one."""

    @property
    def sandbox_policy(self) -> SandboxPolicy:
        """What environments get when they open a sandbox."""
        return SandboxPolicy(
            backend=self.sandbox, min_level=self.sandbox_min_level, allow_weak=self.allow_weak_sandbox
        )
