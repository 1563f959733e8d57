"""Harmless programs work on every backend: by the way that tools take, and by the command and the factory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.sandbox import factory
from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.blocking import run_blocking
from envs.sandbox.choosing import probed
from tests.envs.sandbox import as_user
from tests.envs.sandbox.openings import require_backend

BACKENDS = ["ns", "landlock", "bwrap"]
PROGRAMS = sorted((Path(__file__).parent / "harmless_programs").glob("*.py"))
"""What each prints is said at its end, after `# >`. `# needs level 3`: sockets, or named semaphores."""

CODE = {program.stem: program.read_text() for program in PROGRAMS}


def printed(program: Path) -> str:
    if program.stem == "large_output":
        return "".join(f"{str(number % 10) * 99}\n" for number in range(600))
    lines = [line for line in program.read_text().splitlines() if line.startswith("# >")]
    return "".join(f"{line[4:]}\n" for line in lines)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
async def test_a_harmless_program_works(program: Path, backend: str) -> None:
    await require_backend(backend)
    code = CODE[program.stem]
    if code.startswith("# needs level 3") and backend == "landlock":
        pytest.skip("level 2 has no sockets and no named semaphores")
    async with Sandbox.open(Limits(wall_s=60), backend=backend) as box:
        result = await box.python(code)
    assert (result.status, result.stderr) == ("ok", "")
    assert result.stdout == printed(program)


@pytest.mark.parametrize("backend", BACKENDS)
def test_harmless_programs_work_by_the_factory(backend: str) -> None:
    if missing := run_blocking(probed(backend)).missing:
        pytest.skip(f"{backend} is not here: missing {missing}")
    make = factory({"mem_mb": 512}, backend=backend)
    for program in [program for program in PROGRAMS if "# needs" not in CODE[program.stem]][::6]:
        found = make.run(program.read_text(), timeout=60)
        good = {"stderr": "", "exit_code": 0, "timed_out": False, "status": "ok"}
        assert found == {"stdout": printed(program), **good}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "tests",
    [
        "test_harmless.py",
        pytest.param("test_contract.py", marks=pytest.mark.extra),
        pytest.param("test_leftovers.py", marks=pytest.mark.extra),
        "test_choosing.py",
    ],
)
def test_an_ordinary_user_finds_the_same(tests: str) -> None:
    """The same tests once more: bwrap, which root's interpreter keeps out, is among them."""
    if os.getuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    if problem := as_user.problem():
        pytest.skip(problem)
    path = f"{os.path.dirname(__file__)}/{tests}"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not ordinary_user",
        path,
    ]
    done = subprocess.run(as_user.command(command), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-5000:]
