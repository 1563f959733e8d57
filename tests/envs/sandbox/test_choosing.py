"""Which sandbox is taken is found by trying; what is missing is said with its mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.sandbox import SandboxTooWeakError, choosing, syscalls
from envs.sandbox.base import Limits, Probe, Sandbox
from envs.sandbox.choosing import ALLOW_WEAK, BUILT_IN, backend_named, choose, describe

ONLY_X86 = pytest.mark.skipif(syscalls.MACHINE != "x86_64", reason="the filter knows the calls of x86-64")
CHOOSE = """
import asyncio, sys
from envs.sandbox import Sandbox
from envs.sandbox.choosing import choose, describe
async def main():
    print(describe(await choose(sys.argv[1], int(sys.argv[2]))))
    async with Sandbox.open(backend=sys.argv[1], min_level=int(sys.argv[2])) as box:
        print((await box.python("print('inside')")).stdout)
asyncio.run(main())
"""
PACKAGE = """
from envs.sandbox.base import Probe
from envs.sandbox.choosing import BUILT_IN


class Mine:
    name, level = "mine", 4

    async def probe(self):
        return Probe(backend="mine", level=4, details="of a package")

    async def open(self, limits, files, seed):
        return await BUILT_IN["ns"].open(limits, files, seed)


WRONG = object()
"""


def chosen_under_a_filter(backend: str, min_level: int) -> subprocess.CompletedProcess[str]:
    """What a process that may make no namespace finds."""
    command = [sys.executable, "-m", "tests.envs.sandbox.filtered", sys.executable, "-c", CHOOSE]
    return subprocess.run([*command, backend, str(min_level)], capture_output=True, text=True, timeout=120)


@ONLY_X86
def test_a_container_without_privileges_gets_landlock() -> None:
    if not syscalls.landlock_abi():
        pytest.skip("this kernel has no Landlock")
    done = chosen_under_a_filter("auto", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sandbox: landlock (level 2)")
    assert "inside" in done.stdout


@ONLY_X86
@pytest.mark.parametrize("backend", ["auto", "ns"])
def test_a_container_without_privileges_is_told_what_level_3_lacks(backend: str) -> None:
    done = chosen_under_a_filter(backend, 3)
    assert done.returncode != 0
    words = done.stderr.split("SandboxTooWeakError: ")[1]
    assert "no sandbox of level 3 or more" in words
    assert "ns: missing" in words
    assert "Operation not permitted" in words
    assert "seccomp=unconfined" in words
    assert ("landlock: missing level 3: it is level 2" in words) == (backend == "auto")


async def test_a_level_that_no_backend_of_ours_has_is_refused() -> None:
    with pytest.raises(SandboxTooWeakError, match="no sandbox of level 4") as error:
        await choose("auto", 4)
    assert all(f"{name}: missing level 4" in str(error.value) for name in ("ns", "bwrap", "landlock"))
    with pytest.raises(ValueError, match="min_level is 5; expected 1, 2, 3 or 4"):
        await choose("auto", 5)


@pytest.mark.parametrize(("argument", "variable"), [(False, None), (True, None), (False, "1"), (True, "yes")])
async def test_level_1_needs_two_consents(
    argument: bool, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALLOW_WEAK, raising=False)
    if variable is not None:
        monkeypatch.setenv(ALLOW_WEAK, variable)
    with pytest.raises(SandboxTooWeakError, match="no security boundary"):
        await choose("rlimits", 1, allow_weak=argument)


async def test_with_two_consents_level_1_says_loudly_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ALLOW_WEAK, "1")
    choosing._warn_once.cache_clear()
    async with Sandbox.open(backend="rlimits", allow_weak=True) as box:
        assert (await box.python("print(1)")).stdout == "1\n"
        assert box.level == 1
    assert "NO SECURITY BOUNDARY" in capfd.readouterr().err


async def test_consent_to_level_1_is_none_to_less_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_WEAK, "1")
    for level in (2, 3):
        with pytest.raises(SandboxTooWeakError, match=f"missing level {level}: it is level 1"):
            await choose("rlimits", level, allow_weak=True)


class Claims:
    """A backend that a package might register: what it says of itself, and what its probe finds."""

    def __init__(self, level: int, found: int) -> None:
        self.name, self.level, self.found = "claims", level, found

    async def probe(self) -> Probe:
        return Probe(backend=self.name, level=self.found)

    async def open(self, limits, files, seed) -> Sandbox:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("backend", "min_level", "words"),
    [
        (Claims(level=4, found=2), 4, "missing level 4: it is level 2"),
        (Claims(level=3, found=1), None, "missing level 2: it is level 1"),
        (Claims(level=1, found=1), 1, "two consents"),
        (Claims(level=1, found=4), 2, "two consents"),
    ],
)
async def test_a_registered_backend_is_held_to_its_level_and_to_what_its_probe_found(
    backend: Claims, min_level: int | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "backend_named", lambda name: backend)
    monkeypatch.setattr(choosing, "_probes", {})
    with pytest.raises(SandboxTooWeakError, match=words):
        await choose("claims", min_level)


async def test_level_1_is_never_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_WEAK, "1")
    assert (await choose("auto", 1, allow_weak=True)).level > 1


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'landlok'.*landlock"):
        backend_named("landlok")


async def test_a_probe_is_a_run_and_its_line_says_what_was_found() -> None:
    probe = await choose("auto", 2)
    assert probe == await BUILT_IN[probe.backend].probe()
    assert describe(probe).startswith(f"sandbox: {probe.backend} (level {probe.level}) root=")


async def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandbox.bubblewrap.PROGRAM", "")
    probe = await BUILT_IN["bwrap"].probe()
    assert "the program bwrap" in probe.missing
    assert "apt install bubblewrap" in probe.mend


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers backends, as if it were installed."""
    (tmp_path / "backends_of_a_package.py").write_text(PACKAGE)
    info = tmp_path / "backends_of_a_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backends-of-a-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{choosing.GROUP}]\nmine = backends_of_a_package:Mine\nwrong = backends_of_a_package:WRONG\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("package")
async def test_a_backend_of_a_package_is_found_and_used() -> None:
    if missing := (await BUILT_IN["ns"].probe()).missing:
        pytest.skip(f"it stands on ns, which is not here: missing {missing}")
    assert await choose("mine", 4) == Probe(backend="mine", level=4, details="of a package")
    async with Sandbox.open(Limits(wall_s=20), backend="mine", min_level=4) as box:
        assert (await box.python("print(1)")).stdout == "1\n"
    choosing._probes.pop("mine")


@pytest.mark.usefixtures("package")
def test_what_a_package_registers_must_be_a_backend() -> None:
    with pytest.raises(ValueError, match=r"entry point 'wrong'.*expected a SandboxBackend"):
        backend_named("wrong")
    with pytest.raises(ValueError, match="mine"):
        backend_named("mines")


@pytest.mark.skipif(os.getuid() != 0, reason="only root has an interpreter that others cannot read")
async def test_bwrap_under_root_says_what_keeps_it_out() -> None:
    probe = await BUILT_IN["bwrap"].probe()
    assert probe.missing == "" or "read" in probe.missing or "program bwrap" in probe.missing
