"""What the checks of the contract are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from envs.sandbox.base import Limits, Sandbox


class Opens(Protocol):
    """Opens a sandbox of the backend that is checked."""

    def __call__(
        self, limits: Limits | None = None, files: dict[str, bytes] | None = None, *, seed: int = 0
    ) -> AbstractAsyncContextManager[Sandbox]: ...


CHECKS: dict[str, Callable[[Opens], Awaitable[None]]] = {}


def check(function: Callable[[Opens], Awaitable[None]]) -> Callable[[Opens], Awaitable[None]]:
    CHECKS[function.__name__] = function
    return function


def equal(found: Any, wanted: Any, about: Any = "") -> None:
    if found != wanted:
        raise AssertionError(f"found {found!r}; expected {wanted!r} {about}")


def holds(condition: bool, about: Any) -> None:
    if not condition:
        raise AssertionError(str(about))


async def raises(kind: type[BaseException], work: Awaitable[Any]) -> BaseException:
    try:
        result = await work
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}; found {result!r}")


async def printed(box: Sandbox, code: str, **options: Any) -> str:
    """What a program prints that must end well."""
    result = await box.python(code, **options)
    equal(result.status, "ok", result)
    return result.stdout
