"""Tests on several cores at once (pytest-xdist), and those that must not share them; a process's own folder.

A test marked `alone` holds a lock for itself while it runs, the others share it: what is measured in
fractions of a second then meets no second test.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside the test's timeout: waiting is not its fault
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):  # no worker of xdist's: one test at a time
        return (yield)
    session = Path(item.config.option.basetemp).parent  # every worker has a folder of its own below it
    with _turn(session, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(autouse=True)
def _same_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts processes of a run moves TMPDIR for good (recipes/leftovers.py): for one test only here."""
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())


@contextmanager
def _turn(session: Path, *, alone: bool) -> Iterator[None]:
    """Nobody passes the gate while a test that must be alone waits there, so that it comes to its turn."""
    with (session / "gate.lock").open("w") as gate, (session / "turn.lock").open("w") as turn:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
