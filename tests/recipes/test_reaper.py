"""The process that cleans up after a run removes whatever is there, and harms nobody who only stands by."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from recipes import reaper

DEPTH = 3000
SLEEP = "import sys, time; print(1, flush=True); time.sleep(60)"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="reaped-", dir="/tmp"))
    yield path
    reaper.remove(str(path))


def nest(folder: Path, depth: int) -> None:
    """`depth` folders in each other, a file in the last: no path leads there."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_a_folder_of_any_depth_and_any_permission_is_removed(folder: Path):
    """By the program as recipes/leftovers.py starts it, once its input has ended."""
    program = str(Path(reaper.__file__))
    nest(folder, DEPTH)
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "inner" / "file").touch()
    for name in ("closed/inner", "closed"):
        (folder / name).chmod(0)
    subprocess.run(
        [sys.executable, "-I", "-S", program, str(folder)],
        stdin=subprocess.DEVNULL,
        cwd="/",
        timeout=60,
        check=True,
    )
    assert not folder.exists()


def test_only_processes_that_use_the_folder_are_ended(folder: Path):
    beside = Path(f"{folder}-beside")
    beside.mkdir()
    (beside / "file").touch()
    (folder / "file").touch()
    plain = {name: value for name, value in os.environ.items() if name != "TMPDIR"}

    def started(stack: ExitStack, *words: str, **options: Any) -> subprocess.Popen[Any]:
        command = [sys.executable, "-c", SLEEP, *words]
        settings: dict[str, Any] = {"env": plain, "cwd": "/"} | options
        process: subprocess.Popen[Any] = subprocess.Popen(command, stdout=subprocess.PIPE, **settings)
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        return process

    with ExitStack() as stack:
        opened = stack.enter_context(open(folder / "file"))
        users = {
            "temp": started(stack, env=plain | {"TMPDIR": str(folder)}),
            "cwd": started(stack, cwd=folder),
            "file": started(stack, stdin=opened),
        }
        opened.close()
        bystanders = {
            "names it": started(stack, str(folder)),
            "names a file of it": started(stack, f"{folder}/file"),
            "works beside it": started(stack, cwd=beside),
            "has a file beside it": started(stack, stdin=stack.enter_context(open(beside / "file"))),
            "has its own temp": started(stack, env=plain | {"TMPDIR": str(beside)}),
        }
        reaper.end_users(str(folder), grace_s=0.3, deadline_s=20)
        assert {name: process.poll() for name, process in users.items()} == dict.fromkeys(users, -9)
        assert {name: process.poll() for name, process in bystanders.items()} == dict.fromkeys(bystanders)
    (beside / "file").unlink()
    beside.rmdir()
