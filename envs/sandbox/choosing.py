"""Which sandbox this machine has: found by running a program through each, never by looking for a file.

`python -m envs.sandbox.choosing` prints what was found.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from envs.names import unknown_name
from envs.sandbox import bubblewrap, syscalls
from envs.sandbox.base import (
    Limits,
    Probe,
    Sandbox,
    SandboxBackend,
    SandboxError,
    SandboxFileError,
    SandboxTooWeakError,
)
from envs.sandbox.boxes import is_open_to_all
from envs.sandbox.client import Box
from envs.sandbox.places import readable_places
from envs.sandbox.policy import SandboxPolicy
from envs.sandbox.spawning import Launcher

GROUP = "whetstone.sandboxes"
"""Entry-point group of other packages' backends: gVisor, docker, Ray's sandboxes, a remote service."""

ALLOW_WEAK = "WHETSTONE_ALLOW_WEAK_SANDBOX"
"""Environment variable, 1: one half of the consent to level 1; `allow_weak` is the other."""

_HELLO = "print(sum(range(10)))"


class BuiltIn:
    """A backend of ours."""

    def __init__(self, name: str, level: int) -> None:
        self.name = name
        self.level = level
        self.launcher = Launcher(name)

    async def open(self, limits: Limits, files: Mapping[str, bytes], seed: int) -> Sandbox:
        box = Box(self.launcher, limits, self.level, seed)
        await box.start(files)
        return box

    async def probe(self) -> Probe:
        missing, mend = _known_gap(self.name)
        if not missing:
            try:
                async with await self.open(Limits(wall_s=10), {"in.txt": b"hello"}, 0) as box:
                    result = await box.python(f"assert open('in.txt').read() == 'hello'\n{_HELLO}")
                if not result.is_ok:
                    missing = f"a small program ended with {result.status}: {result.stderr.strip()[-300:]}"
            except (SandboxError, SandboxFileError, OSError) as error:
                missing = str(error)
            mend = _MENDS[self.name] if missing else ""
        return Probe(
            backend=self.name,
            level=self.level,
            missing=missing,
            mend=mend,
            details=f"{_details()}{self._cgroup()}",
        )

    def _cgroup(self) -> str:
        """What its launcher was delegated; nothing where none came up."""
        controllers = self.launcher.cgroup.get("controllers", ())
        return f" cgroup={','.join(controllers) or 'none'}" if self.launcher.cgroup else ""


_MENDS = {
    "ns": "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces "
    "above 0, kernel.apparmor_restrict_unprivileged_userns=0), or run the container with --security-opt "
    "seccomp=unconfined, or as root with CAP_SYS_ADMIN",
    "bwrap": "install bubblewrap 0.8 or newer and allow user namespaces; bwrap never runs as root here, so "
    "where root starts this other users must be able to read the interpreter (one below /usr, for instance)",
    "landlock": "use Linux 5.13 or newer with landlock among the modules of /sys/kernel/security/lsm",
    "rlimits": "see the message",
}


def _known_gap(name: str) -> tuple[str, str]:
    """What is missing, where that can be said in better words than an attempt gives."""
    if sys.platform != "linux" or not syscalls.IS_SUPPORTED:
        return (
            f"Linux on x86-64 or aarch64 (this is {sys.platform} on {syscalls.MACHINE})",
            "use a Linux machine",
        )
    if name == "bwrap" and not bubblewrap.PROGRAM:
        return "the program bwrap", "install bubblewrap (apt install bubblewrap)"
    if name == "bwrap" and os.getuid() == 0 and not all(map(is_open_to_all, readable_places())):
        return "an interpreter that users other than root can read", _MENDS["bwrap"]
    if name == "landlock" and not syscalls.landlock_abi():
        return "Landlock in this kernel", _MENDS["landlock"]
    return "", ""


@cache
def _details() -> str:
    """What of this machine decides which sandbox it gives."""
    facts = {
        "root": "yes" if os.getuid() == 0 else "no",
        "userns": "yes" if _can_make_user_namespace() else "no",
        "landlock": syscalls.landlock_abi() or "none",
    }
    return " ".join(f"{name}={value}" for name, value in facts.items())


def _can_make_user_namespace() -> bool:
    """Whether an ordinary user may: tried in a process of its own."""
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000) != 0)"
    try:
        return not subprocess.run([sys.executable, "-I", "-S", "-c", code], timeout=10).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


BUILT_IN: dict[str, BuiltIn] = {
    name: BuiltIn(name, level) for name, level in (("ns", 3), ("bwrap", 3), ("landlock", 2), ("rlimits", 1))
}
WEAK = 2
"""Below this level a backend needs two consents."""
AUTOMATIC = ("ns", "bwrap", "landlock")
"""In this order; the others only when they are named."""


def is_known(name: str) -> str:
    """What is wrong with a backend's name; "" for nothing. Loads none."""
    registered = [entry.name for entry in entry_points(group=GROUP)]
    known = ["auto", *BUILT_IN, *registered]
    if name in known:
        return ""
    return f"{unknown_name('sandbox backend', name, known)}; others register under {GROUP!r}"


def backend_named(name: str) -> SandboxBackend:
    """A backend of ours, or one that an installed package registers. ValueError names the nearest."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if problem := is_known(name):
        raise ValueError(problem)
    backend = next(entry for entry in entry_points(group=GROUP) if entry.name == name).load()
    backend = backend() if isinstance(backend, type) else backend
    if not isinstance(backend, SandboxBackend):
        raise ValueError(
            f"entry point {name!r} of {GROUP!r} is a {type(backend).__name__}; expected a SandboxBackend: "
            "name, level, probe and open"
        )
    return backend


_probes: dict[str, Probe] = {}


async def probed(name: str) -> Probe:
    """What a real run through backend `name` showed; once a process."""
    if name not in _probes:
        _probes[name] = await backend_named(name).probe()
    return _probes[name]


async def choose(backend: str = "auto", min_level: int | None = None, *, allow_weak: bool = False) -> Probe:
    """The backend to use: the named one, or the first that works here.

    `min_level` None is 2; or 1 for a backend of level 1 that is named and has both consents.

    Raises:
        SandboxTooWeakError: none reaches `min_level`, or one of level 1 lacks a consent; says what is
            missing and the mend.
        ValueError: no such backend or level.
    """
    if min_level not in (None, 1, 2, 3, 4):
        raise ValueError(f"min_level is {min_level!r}; expected 1, 2, 3 or 4 (see envs/sandbox/base.py)")
    found = []
    for name in AUTOMATIC if backend == "auto" else (backend,):
        level = backend_named(name).level
        if level < WEAK:
            _require_consent(name, level, allow_weak)
        wanted = min(level, WEAK) if min_level is None else min_level
        # What it says of itself first: a weaker one is not even tried.
        probe = await probed(name) if level >= wanted else Probe(backend=name, level=level)
        if probe.missing:
            found.append(f"{name}: missing {probe.missing}; {probe.mend}")
        elif min(level, probe.level) < wanted:
            found.append(
                f"{name}: missing level {wanted}: it is level {min(level, probe.level)}; take a stronger "
                "one, or ask for less (min_level)"
            )
        else:
            return probe
    lines = "\n  ".join(found)
    asked = "any backend" if backend == "auto" else f"backend {backend!r}"
    level = min_level or WEAK
    raise SandboxTooWeakError(
        f"this machine has no sandbox of level {level} or more ({asked} was asked for):\n  {lines}"
    )


def _require_consent(name: str, level: int, allow_weak: bool) -> None:
    if not (allow_weak and os.environ.get(ALLOW_WEAK) == "1"):
        raise SandboxTooWeakError(
            f"backend {name!r} is level {level}, limits and deadlines only: it is no security boundary, and "
            "what runs in it can do what you can. It needs two consents: allow_weak=True (--allow-weak, "
            f"--allow-weak-sandbox) and {ALLOW_WEAK}=1 in the environment"
        )
    _warn_once(name, level)


@cache
def _warn_once(name: str, level: int) -> None:
    line = (
        f"WARNING: sandbox {name} (level {level}) is NO SECURITY BOUNDARY: programs in it can do what you can"
    )
    print(f"\033[1;31m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr)


def describe(probe: Probe) -> str:
    """The one line that a run prints and records."""
    return f"sandbox: {probe.backend} (level {probe.level}) {probe.details}".rstrip()


class Opener:
    """What `Sandbox.open` returns."""

    def __init__(self, limits: Limits, files: Mapping[str, bytes], policy: SandboxPolicy, seed: int) -> None:
        self._limits, self._files, self._policy, self._seed = limits, files, policy, seed
        self._box: Sandbox | None = None

    async def _open(self) -> Sandbox:
        policy = self._policy
        probe = await choose(policy.backend, policy.min_level, allow_weak=policy.allow_weak)
        return await backend_named(probe.backend).open(self._limits, self._files, self._seed)

    async def __aenter__(self) -> Sandbox:
        self._box = await self._open()
        return self._box

    async def __aexit__(self, *exc: object) -> None:
        if self._box is not None:
            await self._box.close()

    def __await__(self) -> Iterator[Any]:
        return self._open().__await__()


async def _main() -> None:
    for name in BUILT_IN:
        probe = await probed(name)
        print(f"{describe(probe)}{': missing ' + probe.missing + '; ' + probe.mend if probe.missing else ''}")
    reasons = [backend.launcher.cgroup.get("reason") for backend in BUILT_IN.values()]
    if reason := next(filter(None, reasons), ""):
        print(f"no cgroup is used: {reason}")


if __name__ == "__main__":
    asyncio.run(_main())
