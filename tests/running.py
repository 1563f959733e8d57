"""A real run of the recipe in a process of its own, to be watched and hurt."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")

HEARS_CTRL_C = ("env", "--default-signal=INT", sys.executable)
"""Python with SIGINT as a terminal gives it: what a shell starts in the background ignores it, tests too."""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    `seconds` since it was hurt; `left` are its processes that still live; `shared_memory` are blocks that
    were not there when it began, and that nobody has mapped.
    """

    code: int
    seconds: float
    screen: str
    errors: str
    left: list[str]
    shared_memory: set[str]


class RunningRun:
    """A run in a session of its own; its output goes to files, so that no full pipe holds it up."""

    def __init__(self, path: Path, options: Sequence[str]) -> None:
        self.path = path / "run"
        self._screen, self._errors = path / "stdout", path / "stderr"
        command = [
            sys.executable,
            "-m",
            "recipes.calc_grpo",
            "--smoke",
            "--run-dir",
            str(self.path),
            *options,
        ]
        with self._screen.open("w") as out, self._errors.open("w") as errors:
            self.driver = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True)
        self._family: dict[int, psutil.Process] = {}
        self._shared_memory_before = _blocks()

    def wait_for_step(self, timeout_s: float) -> None:
        """Until the first training step is written down."""
        metrics = self.path / "metrics.jsonl"
        ends = time.monotonic() + timeout_s
        while not (metrics.exists() and metrics.read_text()):
            assert self.driver.poll() is None, self._errors.read_text()
            assert time.monotonic() < ends, "no step in time"
            time.sleep(0.2)

    @property
    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self._errors.read_text()

    def process(self, title: str) -> psutil.Process:
        """The one process of the run whose command line begins with `title`."""
        self._family = {p.pid: p for p in self.driver.children(recursive=True)}
        (found,) = [p for p in self._family.values() if _title(p).startswith(title)]
        return found

    def hurt(self, victim: psutil.Process, number: signal.Signals, *, timeout_s: float) -> Ended:
        """Send a signal to `victim` and wait for the end of the run."""
        self._family = {p.pid: p for p in self.driver.children(recursive=True)}
        started = time.monotonic()
        victim.send_signal(number)
        code = self.driver.wait(timeout_s)
        seconds = time.monotonic() - started
        _, alive = psutil.wait_procs(list(self._family.values()), timeout=10)
        left = [_title(process) for process in alive]
        found = _blocks() - self._shared_memory_before - _mapped()
        return Ended(code, seconds, self._screen.read_text(), self._errors.read_text(), left, found)

    def end(self) -> None:
        for process in [*self._family.values(), *_children(self.driver), self.driver]:
            if process.is_running():
                process.kill()


@contextmanager
def running(path: Path, options: Sequence[str]) -> Iterator[RunningRun]:
    """A run that is ended with the block, whatever happens in it."""
    run = RunningRun(path, options)
    try:
        yield run
    finally:
        run.end()


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _blocks() -> set[str]:
    """Files in shared memory, without semaphores: vLLM may lose one of 32 bytes when it is killed."""
    return {file.name for file in SHARED_MEMORY.iterdir() if not file.name.startswith("sem.")}


def _mapped() -> set[str]:
    """The names of shared-memory files that a living process has mapped: those of other runs."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is another user's
            mapped |= {
                Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "/dev/shm/" in line
            }
    return mapped


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
