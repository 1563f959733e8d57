"""Running cells: each a process of its own with a deadline, known by what it left behind, never run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rl.durable import atomic_write_json
from scripts.comparing.locks import LOCK_NAME, dies_with_parent, owner
from scripts.comparing.names import CompareError
from scripts.comparing.results import RunError, read_run, spent_tokens

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 60.0
"""Seconds that a run has to end by itself once it was told to."""
NUM_LOG_LINES = 12
"""Last lines of a log that are shown of a failed cell."""
VERDICTS = (0, 1)
"""Exit codes of a run that was trained and measured: PASS and FAIL."""

Status = Literal["finished", "failed", "unfinished", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One cell as a process: `command` writes its run to `folder`/run and its screen to `folder`/log.txt.

    It starts in `cwd`, where the user's own files are named from, whatever the directory of a Ray worker is.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    deadline_s: float
    cwd: Path = field(default_factory=Path.cwd)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def record(self) -> Path:
        return self.folder / "cell.json"

    @property
    def started(self) -> Path:
        """An empty file, as old as the attempt."""
        return self.folder / "started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a cell ended, after `seconds` of wall time. `reason` is empty for one with a verdict."""

    command: tuple[str, ...]
    exit_code: int
    seconds: float
    reason: str = ""


def status(job: Job) -> Status:
    """What is known of `job` from its folder. Raises CompareError where it ran with other options."""
    if not job.folder.exists():
        return "absent"
    if not job.record.is_file():
        return "unfinished"
    outcome = read_outcome(job)
    if outcome.command != job.command:
        changed = sorted({*outcome.command} ^ {*job.command})
        raise CompareError(
            f"{job.folder} was run with other options ({' '.join(changed)} differ); repeat the options of "
            "this comparison, or give another --out"
        )
    return "failed" if outcome.reason else "finished"


def read_outcome(job: Job) -> Outcome:
    """What `run_job` wrote down."""
    record: dict[str, Any] = json.loads(job.record.read_text())
    return Outcome(**{**record, "command": tuple(record["command"])})


def run_job(job: Job, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run `job` to its end or its deadline and write down how it ended.

    What an earlier attempt left, half-finished or failed, is moved aside first and kept. An interrupt
    (KeyboardInterrupt) ends the process, too, and leaves the cell unfinished.
    """
    move_aside(job)
    job.folder.mkdir(parents=True)
    job.started.touch()
    started = time.monotonic()
    with job.log.open("wb") as log:
        # A session of its own: the terminal's Ctrl-C reaches this process, which passes it on once.
        process = subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=job.cwd,
            env=_finds_recipes(os.environ if environment is None else environment),
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
        try:
            code = process.wait(job.deadline_s)
            reason = _reason(job, code)
        except subprocess.TimeoutExpired:
            code = end_process(process)
            reason = f"did not end within its deadline of {job.deadline_s:g} s"
        except BaseException:
            end_process(process)
            raise
    outcome = Outcome(
        command=job.command, exit_code=code, seconds=round(time.monotonic() - started, 1), reason=reason
    )
    write_outcome(job, outcome)
    return outcome


def write_outcome(job: Job, outcome: Outcome) -> None:
    """Write down how `job` ended: from then on it is known as finished or failed."""
    job.folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(job.record, asdict(outcome))


def _finds_recipes(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with our folder on Python's path, so that a run is of the code that compares."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def end_process(process: subprocess.Popen[bytes]) -> int:
    """Ask the process to end, and kill its session when it does not; returns its exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(GRACE_S)


def _reason(job: Job, code: int) -> str:
    """Why a process that ended counts as failed; empty for one with a verdict and its measurements."""
    if code not in VERDICTS:
        return f"ended with exit code {code}"
    try:
        read_run(job.run)  # Python's own exit code for a bug is 1, too
    except RunError as error:
        return f"ended with exit code {code} and without results: {error}"
    return ""


def move_aside(job: Job) -> None:
    """Rename what an earlier attempt left to FOLDER.failed-N or FOLDER.unfinished-N.

    Raises CompareError where it finished, or where its run is still on.
    """
    state = status(job)
    if (running := owner(job.run)) is not None:
        raise CompareError(f"{job.run} is still being trained by {running}; wait for it or end it")
    if state == "finished":
        raise CompareError(f"{job.folder} is finished and is not run again")
    if state != "absent":
        number = 1 + len(earlier_attempts(job))
        job.folder.rename(job.folder.with_name(f"{job.folder.name}.{state}-{number}"))


def earlier_attempts(job: Job) -> list[Path]:
    """Folders of attempts that were moved aside, oldest first."""
    attempts = job.folder.parent.glob(f"{job.folder.name}.*-*")
    return sorted(attempts, key=lambda path: int(path.name.rpartition("-")[2]))


def spent_before(job: Job) -> tuple[float, int]:
    """Seconds and sampled tokens of the attempts that were moved aside, failed or cut off.

    One that was cut off has no record: it lasted until it last wrote anything.
    """
    attempts = [replace(job, folder=folder) for folder in earlier_attempts(job)]
    seconds = sum(read_outcome(a).seconds if a.record.is_file() else _lasted(a) for a in attempts)
    return round(seconds, 1), sum(spent_tokens(attempt.run) for attempt in attempts)


def _lasted(job: Job) -> float:
    starts = [file.stat().st_mtime for file in (job.started, job.run / LOCK_NAME) if file.is_file()]
    ends = [file.stat().st_mtime for file in (job.log, *job.run.glob("*.jsonl")) if file.is_file()]
    return max(0.0, max(ends) - min(starts)) if starts and ends else 0.0


def last_lines(log: Path, num: int = NUM_LOG_LINES) -> list[str]:
    """The end of a log, without blank lines."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return [line for line in lines if line.strip()][-num:]


Say = Callable[[str], None]
Ended = Callable[[Job, Outcome], None]


def run_jobs(
    jobs: Sequence[Job], say: Say, *, num_parallel: int = 1, ended: Ended = lambda job, outcome: None
) -> None:
    """Run every job that is not finished; a failure is said and does not stop the others.

    `ended` is told of each as it ends. What it raises, and KeyboardInterrupt, is raised after the processes
    that still run were ended.
    """
    waiting = [job for job in jobs if status(job) != "finished"]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} cells are finished already and are not run again")
    if not waiting:
        return
    if num_parallel > 1:
        from scripts.comparing.parallel import in_ray  # Ray, which runs one after another do without

        outcomes = in_ray(waiting, num_parallel, say)
    else:
        outcomes = ((job, run_job(job)) for job in waiting)
    with closing(outcomes):  # an error of ours must not wait for the tasks that run beside it
        for number, (job, outcome) in enumerate(outcomes, start=1):
            how = f"FAILED: {outcome.reason}" if outcome.reason else "finished"
            say(f"[{number}/{len(waiting)}] {job.name}: {how} ({outcome.seconds:.0f} s)")
            if outcome.reason:
                say("\n".join(f"    | {line}" for line in last_lines(job.log)))
            ended(job, outcome)
