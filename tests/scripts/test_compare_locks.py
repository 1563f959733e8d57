"""One comparison at a time in a folder, none moves a run that is on, and none leaves a run behind."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl import run_lock
from scripts.comparing import locks
from scripts.comparing.cells import Job, run_job
from scripts.comparing.locks import held
from scripts.comparing.names import CompareError
from tests.finished_run import ROOT

CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
ALONE = "run_jobs([job], print)"
IN_RAY = (
    "run_jobs([job, replace(job, name='y', folder=job.folder.with_name('seed_1'))], print, num_parallel=2)"
)


def test_the_lock_is_that_of_a_run():
    assert locks.LOCK_NAME == run_lock.LOCK_NAME


def test_a_folder_is_held_by_one_comparison_that_is_named(tmp_path: Path):
    with held(tmp_path / "out"):
        with (
            pytest.raises(CompareError, match=rf"in use by process {os.getpid()} on .*; wait for it"),
            held(tmp_path / "out"),
        ):
            pass
        assert locks.owner(tmp_path / "out") is not None
    with held(tmp_path / "out"):  # free again
        pass
    assert locks.owner(tmp_path / "out") is None


def test_a_second_comparison_in_the_same_folder_is_refused_before_it_touches_a_cell(tmp_path: Path):
    options = ["--algorithms", "grpo", "--env", "calc:1", "--budget-tokens", "9", "--out", str(tmp_path)]
    (tmp_path / "cells/calc-1/grpo/seed_0").mkdir(parents=True)
    with held(tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "scripts.compare", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert f"in use by process {os.getpid()}" in done.stderr
    assert sorted(path.name for path in (tmp_path / "cells/calc-1/grpo").iterdir()) == ["seed_0"]


def test_a_run_that_is_on_is_not_moved_aside(tmp_path: Path):
    job = Job(name="x", folder=tmp_path / "seed_0", command=(sys.executable, "-c", "pass"), deadline_s=60.0)
    job.run.mkdir(parents=True)
    with (job.run / ".lock").open("w") as lock:
        lock.write("process 4242 on here (boot 1)")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CompareError, match="still being trained by process 4242 on here"):
            run_job(job)
        assert job.run.is_dir()
    run_job(job)
    assert (tmp_path / "seed_0.unfinished-1/run").is_dir()


@pytest.mark.parametrize(
    "how",
    [pytest.param(ALONE, id="alone"), pytest.param(IN_RAY, id="in a Ray task", marks=pytest.mark.slow)],
)
def test_a_killed_comparison_leaves_no_run_behind(tmp_path: Path, how: str):
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from scripts.comparing.cells import Job, run_jobs\n"
        f"command = (sys.executable, '-c', {CHILD!r})\n"
        "job = Job(name='x', folder=Path(sys.argv[1]), command=command, deadline_s=600)\n" + how
    )
    log = tmp_path / "seed_0/log.txt"
    parent = subprocess.Popen([sys.executable, "-c", code, str(log.parent)], cwd=ROOT)
    try:
        _wait(lambda: log.exists() and log.read_text().endswith("\n"), "the child did not start")
        child = psutil.Process(int(log.read_text()))
        time.sleep(2)  # it lives on while its parent does, in whatever thread that started it
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait(60)
        _wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child lives on")
    finally:
        parent.kill()


def _wait(is_so, otherwise: str) -> None:
    ends = time.monotonic() + 100
    while not is_so():
        assert time.monotonic() < ends, otherwise
        time.sleep(0.05)
