"""The cgroup that was delegated is found from what the kernel tells; where there is none, the reason."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from envs.sandbox.delegation import Place, find


class Machine:
    """What the kernel tells of cgroups, as files: of one mount, and of the cgroup that a process is in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.top = folder, folder / "a mount"
        self.top.mkdir()
        self.say("/", f"30 23 0:26 / {str(self.top).replace(' ', chr(92) + '040')} rw - cgroup2 cgroup2 rw\n")

    def say(self, path: str, mounts: str | None = None) -> None:
        (self.folder / "cgroup").write_text(f"4:memory:/elsewhere\n0::{path}\n")
        if mounts is not None:
            old = "40 31 0:37 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
            (self.folder / "mountinfo").write_text(old + mounts)

    def make(self, name: str, *, controllers: str = "", enabled: str = "", procs: str = "") -> Path:
        here = self.top / name
        here.mkdir(exist_ok=True)
        texts = {"controllers": controllers, "subtree_control": enabled, "procs": procs, "type": "domain"}
        for key, text in texts.items():
            (here / f"cgroup.{key}").write_text(f"{text}\n")
        self.say(f"/{name}" if name else "/")
        return here

    def find(self) -> tuple[Place | None, str]:
        return find(proc=str(self.folder))


@pytest.fixture
def machine() -> Iterator[Machine]:
    folder = tempfile.mkdtemp(dir="/tmp")  # where any user may look, whatever TMPDIR is
    os.chmod(folder, 0o755)
    yield Machine(Path(folder))
    shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_the_nearest_one_that_holds_no_process_is_found(machine: Machine) -> None:
    machine.make("", controllers="cpu memory pids", enabled="memory pids")
    parent = machine.make("user", controllers="cpu memory pids", enabled="cpu memory pids")
    machine.make("user/program", controllers="cpu memory pids", procs="17")
    assert machine.find() == (Place(str(parent), ("memory", "pids", "cpu")), "")


def test_a_part_of_the_controllers_is_used(machine: Machine) -> None:
    here = machine.make("", controllers="cpu io pids", enabled="io pids cpu")
    assert machine.find() == (Place(str(here), ("pids", "cpu")), "")


@pytest.mark.parametrize("controllers", ["", "cpu", "cpu io hugetlb"])
def test_one_without_memory_and_pids_is_none(machine: Machine, controllers: str) -> None:
    machine.make("", controllers=controllers, enabled=controllers)
    assert machine.find() == (None, f"{machine.top}: has none of the controllers memory and pids")


def test_one_that_holds_processes_is_none(machine: Machine) -> None:
    here = machine.make("", controllers="memory pids", enabled="pids", procs="17")
    assert machine.find() == (None, f"{here}: holds processes itself")
    assert (here / "cgroup.subtree_control").read_text() == "pids\n"


def test_one_of_another_user_is_none(machine: Machine) -> None:
    here = machine.make("", controllers="memory pids", enabled="memory pids")
    if os.geteuid() != 0:
        here.chmod(0o555)
    with as_nobody():
        assert machine.find() == (None, f"{here}: may not be written")


def test_what_cannot_be_read_is_said(machine: Machine) -> None:
    here = machine.make("", controllers="memory")
    (here / "cgroup.subtree_control").unlink()
    assert machine.find() == (None, f"{here}: may not be written")
    (here / "cgroup.controllers").unlink()
    place, reason = machine.find()
    assert place is None
    assert "No such file" in reason


def test_without_version_2_there_is_none(machine: Machine) -> None:
    machine.say("/", mounts="")
    assert machine.find() == (None, "no cgroup v2 is mounted")


@pytest.mark.parametrize("path", ["/../other", "/.."])
def test_one_above_the_own_namespace_is_none(machine: Machine, path: str) -> None:
    machine.make("", controllers="memory pids", enabled="memory pids")
    machine.say(path)
    assert machine.find() == (None, f"the own cgroup {path} is not below one that is mounted")
