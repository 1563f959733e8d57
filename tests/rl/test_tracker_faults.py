"""A tracker that fails or hangs: said once, kept in incidents/, and training neither waits nor ends."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rl import tracking
from rl.tracking import KILL_S
from tests.finished_run import ROOT
from tests.tracked import Logging, tensorboard_of, wandb_files

KEY = "0123456789abcdef" * 2 + "canaries"
AT_ONCE_S = 1.0
"""Far more than a call takes, far less than any deadline of a tracker."""


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """A wandb server that accepts every connection, and never says anything; yields the connections."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:  # closed: the test is over
                    return

        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield accepted
        server.shutdown(socket.SHUT_RDWR)
    for connection in accepted:
        connection.close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def wait_until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.05)


def process_of(run: Logging, name: str) -> psutil.Process:
    """The process of one tracker: it prints to a log that nobody else has open."""
    log = str(run.directory.path / f"tracker-{name}.log")

    def found() -> list[psutil.Process]:
        children = psutil.Process().children()
        return [child for child in children if log in {file.path for file in child.open_files()}]

    wait_until(found)
    return found()[0]


def metrics_steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensorboard_steps(path: Path) -> list[int]:
    events = tensorboard_of(path)
    return [e.step for e in events.Scalars("policy/loss")] if events.Tags()["scalars"] else []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, offline: None, name: str) -> None:
    path = tmp_path / "run"
    run = Logging(path, name, harm=lambda path: (path / name).write_text("a file in the folder's place"))
    wait_until(lambda: run.warnings)
    run.steps(range(1, 50))
    run.finish()
    (told,) = run.warnings
    assert told.startswith(f"WARNING: tracker {name} is off: ")
    assert "Training goes on, metrics.jsonl has every number" in told
    (kept,) = run.incidents
    assert kept in told
    assert metrics_steps(path) == [*range(1, 50)]


def test_a_directory_in_which_nothing_can_be_noted_is_said_too(tmp_path: Path, offline: None) -> None:
    def harm(path: Path) -> None:
        (path / "trackers.json").mkdir()
        for name in ("wandb", "incidents"):
            (path / name).write_text("a file in the folder's place")

    run = Logging(tmp_path / "run", "wandb", harm=harm)
    wait_until(lambda: len(run.warnings) == 3)
    run.steps([1])
    run.finish()
    unread, unwritten, off = run.warnings
    assert unread.startswith("WARNING: trackers.json cannot be read")
    assert unwritten.endswith("a resume would begin another wandb run")
    assert "tracker wandb is off" in off
    assert "not kept in incidents/" in off
    assert metrics_steps(tmp_path / "run") == [1]


def test_a_writer_that_fails_in_the_middle_ends_that_tracker_alone(tmp_path: Path, offline: None) -> None:
    path = tmp_path / "run"
    run = Logging(path, "tensorboard,wandb")
    run.steps([1, 2])
    wait_until(lambda: (path / "tensorboard").exists() and tensorboard_steps(path) == [1, 2])
    # A real write error: the kernel lets no file of this process grow, as on a full disk.
    resource.prlimit(process_of(run, "tensorboard").pid, resource.RLIMIT_FSIZE, (100, 100))
    run.steps(range(3, 9))
    wait_until(lambda: run.warnings)
    run.steps([9])
    run.finish()
    (told,) = run.warnings
    assert "tracker tensorboard is off: OSError: [Errno 27] File too large" in told
    assert tensorboard_steps(path) == [1, 2]
    (kept,) = wandb_files(path)
    assert [row["step"] for row in kept.rows] == [*range(1, 10)]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "its process was killed by SIGKILL"),
        (signal.SIGALRM, "it did not begin within 90 s"),  # how its own deadlines end it
    ],
)
def test_a_tracker_that_dies_is_told_in_words(tmp_path: Path, number: signal.Signals, words: str) -> None:
    run = Logging(tmp_path / "run", "tensorboard")
    process_of(run, "tensorboard").send_signal(number)
    wait_until(lambda: run.warnings)
    run.steps([1])
    run.finish()
    assert [f"tracker tensorboard is off: {words}." in told for told in run.warnings] == [True]


def test_a_tracker_that_cannot_begin_ends_itself(tmp_path: Path, silent_server: list[socket.socket]) -> None:
    program = "from rl import tracker; tracker.START_S = 4; tracker.main()"
    place = {"id": "a", "project": "b", "entity": None}
    start = {"tracker": "wandb", "run": "r", "config": {}, "directory": str(tmp_path), "after_step": None}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(start | place) + "\n",
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    assert silent_server
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, "")


@pytest.mark.alone
def test_a_server_that_never_answers_holds_up_neither_steps_nor_the_end(
    tmp_path: Path, silent_server: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    close_s = 2
    monkeypatch.setattr(tracking, "CLOSE_S", close_s)
    monkeypatch.setattr(tracking, "MAX_WAITING", 20)
    path = tmp_path / "run"
    started = time.monotonic()
    run = Logging(path, "wandb")
    assert time.monotonic() - started < AT_ONCE_S
    wait_until(lambda: silent_server)
    process = process_of(run, "wandb")
    family = [process, *process.children(recursive=True)]
    started = time.monotonic()
    for _ in range(3000):  # more than the pipe and the queue hold
        run.trackers.log(1, {f"policy/{number}": 0.1 for number in range(20)})
    assert time.monotonic() - started < AT_ONCE_S
    run.steps([1, 2])
    started = time.monotonic()
    run.finish()
    assert time.monotonic() - started < close_s + 1 + KILL_S
    told = [line.partition(". ")[0] for line in run.warnings]
    assert (
        told[0]
        == "WARNING: tracker wandb is behind by 20 rows: what comes now is dropped until it catches up"
    )
    assert told[1] == "WARNING: tracker wandb is off: it did not end within 2 s"
    assert told[2].startswith("WARNING: tracker wandb missed 2")
    assert len(told) == len(run.incidents) == 3
    assert metrics_steps(path) == [1, 2]
    _, alive = psutil.wait_procs(family, timeout=20)  # wandb's own process sees that ours is gone
    assert alive == []
    assert [file for file in path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []


def test_without_a_key_wandb_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    run = Logging(tmp_path / "run", "wandb")
    wait_until(lambda: run.warnings)
    run.finish()
    assert "tracker wandb is off: UsageError: No API key configured" in run.warnings[0]


def test_a_run_that_is_killed_leaves_no_tracker_behind(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from tests.tracked import Logging
run = Logging(Path({str(tmp_path / "run")!r}), "tensorboard")
run.steps([1, 2, 3])
print("stepped", flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "stepped\n"
        wait_until(lambda: (tmp_path / "run" / "tensorboard").exists())
        wait_until(lambda: tensorboard_steps(tmp_path / "run") == [1, 2, 3])
        trackers = psutil.Process(run.pid).children(recursive=True)
        assert trackers
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(trackers, timeout=20)
    assert alive == []
