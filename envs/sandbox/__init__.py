"""Where model-written code runs.

`base.py` says what a sandbox promises, `choosing.py` finds which one this machine has. The names below are
loaded when they are first used: the process inside a sandbox loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError, SandboxTooWeakError
    from envs.sandbox.blocking import factory

_PLACES = {
    "ExecResult": "base",
    "Limits": "base",
    "Sandbox": "base",
    "SandboxError": "base",
    "SandboxTooWeakError": "base",
    "factory": "blocking",
}

__all__ = ["ExecResult", "Limits", "Sandbox", "SandboxError", "SandboxTooWeakError", "factory"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
