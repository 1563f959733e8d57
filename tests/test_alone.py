"""What conftest.py promises: of tests on several cores, and of each one's folder of temporary files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import time
import pytest

{alone}
@pytest.mark.parametrize("number", range(6))
def test_shares(number):
    note("shares")

def note(kind):
    began = time.time()
    time.sleep(0.4)
    with open({log!r}, "a") as log:
        log.write(f"{{began}} {{time.time()}} {{kind}}\\n")
"""
ALONE = """
@pytest.mark.alone
@pytest.mark.timeout(0.8)  # waiting for its turn does not count
@pytest.mark.parametrize("number", range(2))
def test_alone(number):
    note("alone")
"""
MOVES = """
import os, tempfile

def test_moves():
    os.environ["TMPDIR"] = {moved!r}
    tempfile.tempdir = None
    assert tempfile.gettempdir() == {moved!r}

def test_does_not_see_it():
    assert {moved!r} not in (tempfile.gettempdir(), os.environ["TMPDIR"])
"""


def test_a_test_that_moves_temporary_files_moves_its_own_only(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_moves.py").write_text(MOVES.format(moved=str(moved)))
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, str(tmp_path / "test_moves.py")]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_test_marked_alone_meets_no_other_and_others_meet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone\n")
    for name, alone in (("one", ALONE), ("two", "")):
        (tmp_path / f"test_{name}.py").write_text(TESTS.format(alone=alone, log=str(log)))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", str(tmp_path)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    rows = [line.split() for line in log.read_text().splitlines()]
    times = [(float(began), float(ended), kind) for began, ended, kind in rows]
    assert len(times) == 14
    met = {
        frozenset((a[2], b[2])) for a in times for b in times if a is not b and a[0] < b[1] and b[0] < a[1]
    }
    assert met == {frozenset({"shares"})}
