"""A run that is killed in the middle of its episodes leaves nothing behind."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.running import running

SETTINGS = (
    "--env",
    "coding:2",
    "--max-total-tokens",
    "400",
    "--context-length",
    "512",
    "--num-steps",
    "1000",
)
GONE_S = 60
"""For whatever ends by itself, or is ended, to be gone."""


def folder_of(family: list[psutil.Process]) -> Path:
    """The folder of a run's temporary files: the last word of its reaper's command line."""
    (line,) = [line for line in map(title, family) if "reaper.py" in line]
    return Path(line.split()[-1])


def sandboxes_of(family: list[psutil.Process]) -> list[str]:
    """Folders of sandboxes beside that one, by the pid of their launcher in the name."""
    pids = {str(process.pid) for process in family}
    return [
        name for name in os.listdir("/tmp") if name.startswith("whetstone-box-") and pids & {*name.split("-")}
    ]


def mounts() -> list[str]:
    return sorted(line.split(" ", 1)[1] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def listening(processes: list[psutil.Process]) -> set[int]:
    ports: set[int] = set()
    for process in processes:
        connections = []
        with suppress(psutil.NoSuchProcess):  # a sandbox's, which has ended since
            connections = process.net_connections(kind="tcp")
        ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return ports


def title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def is_open(port: int) -> bool:
    connections = psutil.net_connections(kind="tcp")
    return any(c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in connections)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_left_of_a_run_killed_in_mid_episode(tmp_path: Path):
    before = mounts()
    with running(tmp_path, SETTINGS) as run:
        run.wait_for_step(400)
        family = run.driver.children(recursive=True)
        assert any("envs.sandbox.launcher" in title(process) for process in family), (
            "no sandbox: this tests nothing"
        )
        folder = folder_of(family)
        assert folder.is_dir()
        ports = listening(family)
        assert ports, "no port: this tests nothing"
        ended = run.hurt(run.driver, signal.SIGKILL, timeout_s=30)
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline:
            living = [process for process in family if title(process)]  # a zombie has no command line
            if not living and not folder.exists():
                break
            time.sleep(0.5)
        assert [title(process)[:80] for process in living] == []
        assert ended.shared_memory == set()
        assert not folder.exists()
        assert sandboxes_of(family) == []
        assert mounts() == before
        assert [port for port in ports if is_open(port)] == []
