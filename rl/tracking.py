"""A run's trackers: its numbers go to wandb or TensorBoard as well, and no trouble there reaches the run.

Each tracker is a process (rl/tracker.py), fed by a thread from a queue with a bound. Whatever goes wrong with
one is said once and kept in incidents/; that tracker is then off, and metrics.jsonl has every number anyway.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from queue import Full, Queue
from typing import Any

from rl import tracker
from rl.config import Config
from rl.incidents import note_incident
from rl.run_dir import NEW_RUN, RunDir, RunState
from rl.tracker import CLOSE_S, ROW_S, START_S, Start
from rollout.jsonl import encode_line

MAX_WAITING = 1000
"""Rows that wait for a slow tracker: a few MB. What comes on top is dropped and counted."""
KILL_S = 5.0
"""For a killed process to be gone."""

Say = Callable[..., None]
"""RunConsole.say: one line, and its style."""


class Trackers:
    """All trackers of a run, of which there may be none. Leaving it as a context manager closes them.

    `ids` are what a resumed run needs to go on in the same place, by tracker. `has_finished` is to be set
    when the run reached its verdict: without it wandb shows a crashed run.
    """

    def __init__(
        self, running: Sequence[TrackerProcess] = (), ids: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.ids = dict(ids or {})
        self.has_finished = False
        self._running = running

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on the numbers of step `step`; returns at once and never raises."""
        for running in self._running:
            running.put({"step": step, "values": dict(values)})

    def close(self) -> None:
        """End all of them; returns within CLOSE_S and a little, whatever they do."""
        ends = time.monotonic() + CLOSE_S + 1  # after the process's own deadline, which says more
        try:
            for running in self._running:
                running.end(0 if self.has_finished else 1, ends)
            for running in self._running:
                running.join(ends)
        finally:  # Ctrl-C: nobody wants to wait
            for running in self._running:
                running.kill()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrackerProcess:
    """One tracker: a queue, the thread that feeds its process, and one that listens to it."""

    def __init__(self, start: Start, directory: RunDir, say: Say) -> None:
        self._name = start["tracker"]
        self._log = directory.path / f"tracker-{self._name}.log"
        self._incidents = directory.incidents
        self._say = say
        self._waiting: Queue[Mapping[str, Any]] = Queue(MAX_WAITING)
        self._waiting.put_nowait(start)
        self._num_dropped = 0
        self._has_begun = self._is_off = False
        self._is_off_lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"tracker {self._name}", daemon=True)
        self._thread.start()

    def put(self, row: Mapping[str, Any]) -> None:
        """Hand on a row, or drop and count it when too many wait."""
        if self._is_off:
            return
        try:
            self._waiting.put_nowait(row)
        except Full:
            self._num_dropped += 1
            if self._num_dropped == 1:
                self._warn(f"is behind by {MAX_WAITING} rows: what comes now is dropped until it catches up")

    def end(self, code: int, ends: float) -> None:
        """Say that nothing more comes, until the time `ends`; `code` is the run's exit code."""
        if self._thread.is_alive():
            try:
                self._waiting.put({"end": code}, timeout=max(0.0, ends - time.monotonic()))
            except Full:
                return  # it hangs, which `join` says

    def join(self, ends: float) -> None:
        """Wait for the end until the time `ends`, then force it."""
        self._thread.join(max(0.0, ends - time.monotonic()))
        if self._thread.is_alive():
            self._turn_off(f"it did not end within {CLOSE_S} s")
            self.kill()
            self._thread.join(KILL_S)
        if self._num_dropped:
            self._warn(f"missed {self._num_dropped} rows, which came faster than it took them")

    def kill(self) -> None:
        """End its process now, if it still runs; wandb's own goes with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _run(self) -> None:
        """Start the process, feed it, and wait for its end."""
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", tracker.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the run, whose last steps it is to hand on
                )
            self._process = process
            listener = threading.Thread(target=self._listen, args=[process], daemon=True)
            listener.start()
            self._feed(process)
            listener.join()
        except Exception as error:
            # Of any kind: a tracker may not end the run, not even by a bug of ours.
            self._turn_off(f"{type(error).__name__}: {error}")

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # it is a pipe
        try:
            while True:
                row = self._waiting.get()
                process.stdin.write(encode_line(row))
                process.stdin.flush()
                if "end" in row:
                    break
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended, and `_listen` says why

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                report = json.loads(line)
                if "error" in report:
                    self._turn_off(report["error"])
                else:
                    self._has_begun = True
                    self._say(f"tracker {self._name}: {report['at']}")
            code = process.wait()
        except Exception as error:
            self._turn_off(f"{type(error).__name__}: {error}")
        else:
            if code:
                self._turn_off(self._cause(code))

    def _cause(self, code: int) -> str:
        """Why its process ended with exit code `code`, in words."""
        if code == -signal.SIGALRM and not self._has_begun:
            return f"it did not begin within {START_S} s"
        if code == -signal.SIGALRM:
            return f"it hung (a row may take {ROW_S} s, its end {CLOSE_S} s)"
        return f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _turn_off(self, why: str) -> None:
        """Take no more rows, and say why: the first reason only, what follows from it says nothing."""
        with self._is_off_lock:
            was_off, self._is_off = self._is_off, True
        if not was_off:
            self._warn(f"is off: {why}")

    def _warn(self, what: str) -> None:
        text = f"tracker {self._name} {what}"
        try:
            note_incident(self._incidents, f"tracker-{self._name}", text)
            kept = f"its own words are in {self._log.name}"
        except OSError as error:
            kept = f"not kept in incidents/: {error}"
        self._say(
            f"WARNING: {text}. Training goes on, metrics.jsonl has every number ({kept})", style="bold yellow"
        )


def start_trackers(config: Config, directory: RunDir, say: Say, resumed: RunState = NEW_RUN) -> Trackers:
    """The trackers of `config`, on their way; those of a resumed run go on where they were.

    An id that is new is on disk before its tracker starts, so that a run killed at any moment finds it again.
    """
    try:
        ids = directory.read_tracker_ids() or resumed.tracker_ids
    except (OSError, ValueError) as error:
        say(
            f"WARNING: trackers.json cannot be read ({error}): the ids are the checkpoint's",
            style="bold yellow",
        )
        ids = resumed.tracker_ids
    if "wandb" in config.tracker_names and "wandb" not in ids:
        ids = {**ids, "wandb": _new_wandb_id()}
        try:
            directory.write_tracker_ids(ids)
        except OSError as error:
            say(f"WARNING: {error}: a resume would begin another wandb run", style="bold yellow")
    running = [
        TrackerProcess(
            Start(
                tracker=name,
                run=directory.path.name,
                config=asdict(config),
                directory=str(directory.path),
                after_step=resumed.step if config.resume else None,
                **ids.get(name, {}),
            ),
            directory,
            say,
        )
        for name in config.tracker_names
    ]
    return Trackers(running, ids)


def _new_wandb_id() -> dict[str, str | None]:
    """Where a new run goes: wandb's environment variables, which a resume no longer looks at."""
    return {
        "id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
        "project": os.environ.get("WANDB_PROJECT") or "whetstone",
        "entity": os.environ.get("WANDB_ENTITY") or None,
    }
