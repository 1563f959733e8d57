"""A run that is killed in the middle of its episodes leaves nothing behind."""

import os
import signal
import time
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


def folders() -> set[str]:
    return {name for name in os.listdir("/tmp") if name.startswith(("whetstone-", "vllm_"))}


def sessions() -> set[str]:
    ray = Path("/tmp/ray")
    return set(os.listdir(ray)) if ray.is_dir() else set()


def mounts() -> list[str]:
    return sorted(line.split(" ", 1)[1] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def listening(processes: list[psutil.Process]) -> set[int]:
    ports: set[int] = set()
    for process in processes:
        connections = process.net_connections(kind="tcp")
        ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return ports


def is_open(port: int) -> bool:
    connections = psutil.net_connections(kind="tcp")
    return any(c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in connections)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_left_of_a_run_killed_in_mid_episode(tmp_path: Path):
    before = folders(), sessions(), mounts()
    with running(tmp_path, SETTINGS) as run:
        run.wait_for_step(400)
        family = run.driver.children(recursive=True)
        titles = [" ".join(process.cmdline()) for process in family]
        assert any("envs.sandbox.launcher" in title for title in titles), "no sandbox: this tests nothing"
        ports = listening(family)
        assert ports, "no port: this tests nothing"
        ended = run.hurt(run.driver, signal.SIGKILL, timeout_s=30)
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline:
            living = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
            if not living and (folders(), sessions()) == before[:2]:
                break
            time.sleep(0.5)
        assert [" ".join(process.cmdline())[:80] for process in living] == []
        assert ended.shared_memory == set()
        assert (folders(), sessions(), mounts()) == before
        assert [port for port in ports if is_open(port)] == []
