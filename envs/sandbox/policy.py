"""What this process asks of a sandbox where a caller does not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """`backend` by name or auto, the least level, and one half of the consent to level 1."""

    backend: str = "auto"
    min_level: int | None = None  # 2, or 1 where that was consented to (choosing.py)
    allow_weak: bool = False


DEFAULT_POLICY = SandboxPolicy()

_current = DEFAULT_POLICY


def use_policy(policy: SandboxPolicy) -> None:
    """From here on every sandbox of this process that asks for nothing else is opened by `policy`."""
    global _current
    _current = policy


def current_policy() -> SandboxPolicy:
    return _current
