"""Cells side by side: every one gets its share, all run at once, and a worker that dies is a failed cell."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import ray

from scripts.comparing.cells import read_outcome, run_jobs, status
from scripts.comparing.locks import held
from scripts.comparing.names import CompareError
from scripts.comparing.shares import Share, at_once, shares
from tests.finished_run import ROOT
from tests.scripts.test_compare_cells import RUN, job


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("machines", "num", "expected"),
    [
        ([(2, 0)], 2, Share(cores=1, gpus=0)),
        ([(7, 0)], 2, Share(cores=3, gpus=0)),
        ([(16, 3)], 2, Share(cores=8, gpus=1)),  # not 1.5, which Ray refuses
        ([(16, 8)], 2, Share(cores=8, gpus=4)),
        ([(16, 1)], 4, Share(cores=4, gpus=1 / 4)),
        ([(16, 2)], 3, Share(cores=5, gpus=1 / 2)),  # two thirds fit twice only
        ([(4, 0), (2, 0)], 2, Share(cores=2, gpus=0)),  # three each would not fit the second machine
    ],
)
def test_every_run_gets_the_largest_share_with_which_all_run_at_once(machines, num: int, expected: Share):
    assert shares(machines, num) == expected
    assert at_once(machines, expected) >= num


def test_more_runs_than_cores_are_refused():
    with pytest.raises(CompareError, match="parallel = 3: a run needs a core, and there are 2"):
        shares([(2, 0)], 3)


def test_gpus_on_a_machine_without_cores_for_them_count_for_none():
    assert at_once([(1, 4), (8, 0)], Share(cores=1, gpus=1)) == 1


def test_cells_run_side_by_side_as_ray_tasks_and_one_whose_worker_dies_has_failed(tmp_path: Path):
    dies = job(tmp_path / "seed_0", "import os, time; os.kill(os.getppid(), 9); time.sleep(60)")
    jobs = [dies, *(job(tmp_path / f"seed_{i}", RUN, "0") for i in (1, 2))]
    said: list[str] = []
    run_jobs(jobs, said.append, num_parallel=2)
    assert [status(cell) for cell in jobs] == ["failed", "finished", "finished"]
    assert "its Ray worker died" in read_outcome(dies).reason
    assert sum("FAILED: its Ray worker died" in line for line in said) == 1


@pytest.mark.slow
def test_what_a_task_refuses_is_said_as_we_say_it(tmp_path: Path):
    cell = job(tmp_path / "seed_0", RUN, "0")
    with held(cell.run), pytest.raises(CompareError, match=r"^[^\n]*still being trained by [^\n]*$"):
        run_jobs([cell], print, num_parallel=2)


def test_a_task_runs_in_its_workers_main_thread(monkeypatch: pytest.MonkeyPatch):
    """Which is what a run's life hangs on (locks.dies_with_parent), and how an interrupt reaches it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
    try:

        def is_first() -> bool:
            return threading.get_native_id() == os.getpid()

        assert ray.get(ray.remote(is_first).remote())
    finally:
        ray.shutdown()
