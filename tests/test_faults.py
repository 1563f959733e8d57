"""A process that dies or hangs, an interruption, a full disk: one message, an exit code, nothing left."""

from __future__ import annotations

import asyncio
import errno
import re
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from recipes.placement import start_ray
from recipes.stopping import InterruptedRunError, Stop, run_interruptibly, stop_of
from rl.checkpoint import LearnerState, save_checkpoint
from rl.config import Config
from rl.gates import GateError
from rollout.collector import NoSignalError
from rollout.engine import EngineError
from rollout.failures import PeerFailedError, world_cause
from tests.running import Ended, running
from tests.tiny import load, make_tiny_model

STEP_S = 280  # for a run to come to its first step, on a machine that does other things as well
LONG_RUN = ("--num-steps", "1000")
NOTHING = LearnerState(tensors={}, numbers={})


def assert_clean_stop(ended: Ended, *named: str, code: int = 3, within_s: float = 30) -> None:
    assert ended.code == code, ended.errors
    assert ended.seconds < within_s
    (message,) = [line for line in ended.errors.splitlines() if line.startswith("STOPPED: ")]
    assert [part for part in named if part not in message] == []
    # Besides it: an empty line, where the run directory is and how to go on, and the base policy's progress.
    others = [line for line in ended.errors.splitlines() if line and line != message]
    told = (
        "base policy: ",
        "The run directory is kept: ",
        "The logs of its processes",
        "Go on with: ",
        "SIGINT: ",
        "SIGTERM: ",
    )
    assert [line for line in others if not line.startswith(told)] == []
    assert "raylet" not in ended.screen
    assert ended.left == []
    assert ended.shared_memory == set()


@pytest.mark.slow
@pytest.mark.timeout(STEP_S + 120)
@pytest.mark.parametrize(
    ("title", "named"),
    [
        ("VLLM::EngineCore", ["engine 0", "is dead", "was killed"]),
        pytest.param("ray::RolloutWorker", ["engine 0", "died", "was killed"], marks=pytest.mark.extra),
        ("ray::Learner", ["the learner", "died", "was killed"]),
    ],
)
def test_a_killed_process_stops_the_run_by_its_role(tmp_path: Path, title: str, named: list[str]) -> None:
    with running(tmp_path, LONG_RUN) as run:
        run.wait_for_step(STEP_S)
        ended = run.hurt(run.process(title), signal.SIGKILL, timeout_s=90)
    assert_clean_stop(ended, *named)


@pytest.mark.slow
@pytest.mark.timeout(STEP_S + 120)
@pytest.mark.parametrize(
    ("title", "deadline", "waited_for"),
    [
        # whatever the run is doing just then: a group, or a weight sync
        ("VLLM::EngineCore", "--group-deadline-s", "the collector waited 40 s|waited 40 s for engine 0"),
        pytest.param(
            "ray::Learner",
            "--learner-deadline-s",
            "the driver waited 40 s for the learner",
            marks=pytest.mark.extra,
        ),
    ],
)
def test_a_process_that_hangs_stops_the_run_at_its_deadline(
    tmp_path: Path, title: str, deadline: str, waited_for: str
) -> None:
    deadlines = [deadline, "40", "--sync-deadline-s", "40"]
    with running(tmp_path, [*LONG_RUN, *deadlines]) as run:
        run.wait_for_step(STEP_S)
        ended = run.hurt(run.process(title), signal.SIGSTOP, timeout_s=180)
    assert re.search(waited_for, ended.errors)
    assert_clean_stop(ended, "waited 40 s", within_s=40 + 45)  # a stopped process is ended after a while


@pytest.mark.slow
@pytest.mark.timeout(STEP_S + 120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.extra)]
)
def test_an_interrupted_run_ends_its_processes_and_says_so(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with running(tmp_path, LONG_RUN) as run:
        run.wait_for_step(STEP_S)
        ended = run.hurt(run.driver, number, timeout_s=90)
    assert_clean_stop(ended, f"interrupted by {number.name}", code=code)


def test_an_interruption_lets_work_clean_up_and_is_raised_as_itself() -> None:
    cleaned = []

    async def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(InterruptedRunError) as raised:
        run_interruptibly(work())
    assert cleaned == [True]
    assert stop_of(raised.value) == Stop("interrupted by SIGTERM", 143)
    assert stop_of(KeyboardInterrupt()) == Stop("interrupted by SIGINT", 130)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (EngineError("engine 0 is dead"), "engine 0 is dead"),
        (NoSignalError("too easy"), "too easy"),
        (TimeoutError("the collector waited"), "the collector waited"),
        (OSError("2 MB free"), "2 MB free"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "[Errno 28] No space left on device: 'a/b'",
        ),
        # a bug of ours, whatever stands beside it
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), None),
        (KeyError("x"), None),
        (ExceptionGroup("g", [EngineError("dead"), KeyError("x")]), None),
        # the members of a group, and their groups, meet the same end
        (ExceptionGroup("g", [EngineError("dead"), ExceptionGroup("h", [EngineError("dead")])]), "dead"),
        (
            ExceptionGroup("g", [EngineError("a"), EngineError("b"), EngineError("c")]),
            "a (and 2 more such failures)",
        ),
    ],
)
def test_the_worlds_failures_have_a_cause_and_bugs_have_none(error: Exception, cause: str | None) -> None:
    assert world_cause(error) == cause


def test_what_a_gate_found_stops_the_run_and_a_bug_does_not_hide() -> None:
    assert stop_of(GateError("the gap is 1")) == Stop("the gap is 1", 3)
    assert stop_of(ZeroDivisionError()) is None


def test_a_cluster_that_is_not_there_stops_the_run(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(PeerFailedError, match="Ray did not start: ") as raised:
        start_ray(Config())
    stop = stop_of(raised.value)
    assert stop is not None
    assert stop.exit_code == 3


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch) -> None:
    model = load(make_tiny_model(tmp_path / "model", tied=True))
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"0 MB free, \d MB needed for the checkpoint step_1"):
        save_checkpoint(model, None, NOTHING, {}, tmp_path / "checkpoints" / "step_1")
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_told_with_the_path(tmp_path) -> None:
    model = load(make_tiny_model(tmp_path / "model", tied=True))
    path = tmp_path / "checkpoints" / "step_1"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writes beyond fail as on a full disk
    try:
        with pytest.raises(OSError, match="step_1 could not be written") as raised:
            save_checkpoint(model, None, NOTHING, {}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert world_cause(raised.value) == str(raised.value)
    assert not any(path.parent.iterdir())
