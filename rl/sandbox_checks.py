"""The sandbox of a run: refused at the start where the machine cannot give it, else written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

from envs.registry import resolve_env
from envs.sandbox.base import Probe, SandboxTooWeakError
from envs.sandbox.blocking import run_blocking
from envs.sandbox.choosing import WEAK, choose, describe, is_known
from envs.sandbox.policy import SandboxPolicy
from rl.config import Config
from rl.reward_checks import reward_facts
from rl.world_settings import WorldSettings

PROBE_S = 60.0
"""For small programs to run through the backends."""


def sandbox_problems(config: Config) -> Iterator[str]:
    """A sandbox where no code is run, or one that this machine does not have."""
    changed = [
        field.name
        for field in fields(WorldSettings)
        if "sandbox" in field.name and getattr(config, field.name) != field.default
    ]
    if not runs_code(config):
        if changed:
            yield (
                f"{' and '.join(changed)} has no effect: environment {config.env!r} runs no code, and no "
                "reward of yours says uses_sandbox = True; leave it out"
            )
        return
    if problem := is_known(config.sandbox):
        yield f"sandbox = {config.sandbox!r}: {problem}"
        return
    try:
        probe = probe_of(config)
        if config.allow_weak_sandbox and probe.level >= WEAK:
            yield (
                f"allow_weak_sandbox has no effect: sandbox {probe.backend} is level {probe.level}; "
                "leave it out"
            )
    except SandboxTooWeakError as error:
        yield f"sandbox = {config.sandbox!r}, sandbox_min_level = {config.sandbox_min_level}: {error}"


def runs_code(config: Config) -> bool:
    """Whether the environment runs code in a sandbox, or the user's reward does."""
    facts = reward_facts(config)
    return resolve_env(config.env).uses_sandbox or (facts is not None and facts.uses_sandbox)


def probe_of(config: Config) -> Probe:
    """The sandbox that this run gets; SandboxTooWeakError where there is none."""
    return _probed(config.sandbox_policy)


@cache
def _probed(policy: SandboxPolicy) -> Probe:
    """Found once, when a configuration is looked at: later askers run in an event loop."""
    chosen = choose(policy.backend, policy.min_level, allow_weak=policy.allow_weak)
    return run_blocking(chosen, timeout_s=PROBE_S)


def sandbox_facts(config: Config) -> dict[str, Any] | None:
    """For the run's manifest: backend, level and what the machine has; None where no code is run."""
    if not runs_code(config):
        return None
    probe = probe_of(config)
    return {"backend": probe.backend, "level": probe.level, "line": describe(probe)}


def sandbox_line(config: Config) -> str:
    """The one line that a run shows, and keeps in every checkpoint; "" where no code is run."""
    facts = sandbox_facts(config)
    return "" if facts is None else str(facts["line"])
