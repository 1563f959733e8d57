"""One tracker in a process of its own: a run's numbers come in on stdin and go to wandb or TensorBoard.

rl/tracking.py starts it. A process, since in the run's own wandb would ask for a key on its terminal, replace
`sys.exit` and `sys.excepthook`, send it SIGINT when a web page says stop, and wait at its exit for as long as
a server likes. Here all of that ends with a kill. This file imports nothing of ours: it starts in a second.

What comes in, a JSON line each: what the run is (see `Start`), then rows {"step": 3, "values": {name:
number}}, then {"end": exit code}. What goes out on stdout: {"at": where the numbers are to be seen} once it
has begun, {"error": why} when it gives up.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, Protocol, TextIO, TypedDict

START_S = 90
"""For a tracker to begin: a server that needs longer is down. Rows wait in the run's queue meanwhile."""
INIT_S = 60.0
"""Of this, what wandb may wait for a server, so that it can still say what went wrong."""
ROW_S = 60
"""For one row. wandb and TensorBoard take one in milliseconds: this long is a hang, not a slow disk."""
CLOSE_S = 10
"""For what is under way at the end. A run that is over has nothing to wait for: what wandb could not send in
this time is in its own folder, and `wandb sync` sends it."""
FINISH_S = CLOSE_S - 3
"""Of this, what wandb may use for sending, so that it can still say that it gave up."""


class Start(TypedDict):
    """What a tracker is told first. `after_step` is the step that a resumed run goes on after."""

    tracker: str
    run: str
    config: Mapping[str, Any]
    directory: str
    after_step: int | None
    id: NotRequired[str]
    project: NotRequired[str]
    entity: NotRequired[str | None]


class Tracker(Protocol):
    """What is done with a run's numbers. `at` says where they are to be seen."""

    at: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on the numbers of step `step`; those of an evaluation come apart from those of training."""
        ...

    def close(self, code: int) -> None:
        """Hand on what is left; the run ended with exit code `code`."""
        ...


class Wandb:
    """Weights & Biases. Its environment variables count: WANDB_MODE, WANDB_PROJECT, WANDB_DIR and the like.

    A resumed run goes on under the same id, and logs the steps again that its checkpoint did not know. The
    step of wandb's own must always increase, so the training step is a metric, `step`, and every chart's
    x-axis: a repeated step stands there twice, at the same x. Each start of an offline run has a folder of
    its own with that id; `wandb sync --help` says that it sends those of one run in the order of their start.
    """

    def __init__(self, start: Start) -> None:
        import wandb

        self._run = wandb.init(
            id=start.get("id"),
            resume="allow",
            project=start.get("project"),
            entity=start.get("entity"),
            name=os.environ.get("WANDB_NAME") or start["run"],
            dir=os.environ.get("WANDB_DIR") or start["directory"],
            config=dict(start["config"]),
            allow_val_change=True,  # a resume may change deadlines and the like
            settings=wandb.Settings(
                init_timeout=INIT_S,
                finish_timeout=FINISH_S,
                console="off",  # what this process prints is not the run's screen
                save_code=False,  # it would be this file
                x_stats_pid=os.getppid(),
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        settings = self._run.settings
        files = Path(settings.sync_dir)
        if settings.mode == "disabled":
            self.at = "disabled by WANDB_MODE: nothing is kept"
        else:
            self.at = self._run.url or f"offline in {files}; send it with: wandb sync {files}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, code: int) -> None:
        self._run.finish(exit_code=code)


class TensorBoard:
    """Event files in `tensorboard/` of the run, flushed row by row; `tensorboard --logdir runs` shows all.

    A resumed run begins a new file with a mark at which readers drop what earlier files hold from that step
    on: a step that is repeated is there once.
    """

    def __init__(self, start: Start) -> None:
        # Not torch.utils.tensorboard: it writes the same events, and imports torch into this process.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # What protobuf generates has no types to check.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event: Any = events.Event
        self._summary: Any = summaries.Summary
        folder = Path(start["directory"], "tensorboard")
        self._file = EventFileWriter(str(folder))
        if start["after_step"] is not None:
            mark = events.SessionLog(status=events.SessionLog.START)
            self._add(step=start["after_step"] + 1, session_log=mark)
        config = "\n".join(f"    {name} = {value!r}" for name, value in start["config"].items())
        self._add(step=start["after_step"] or 0, summary=text_pb("config", config))
        self.at = f"tensorboard --logdir {folder}"

    def _add(self, **fields: Any) -> None:
        self._file.add_event(self._event(wall_time=time.time(), **fields))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def close(self, code: int) -> None:
        self._file.close()


TRACKERS: Mapping[str, Callable[[Start], Tracker]] = {"wandb": Wandb, "tensorboard": TensorBoard}
"""By name, as `--trackers` has it."""


def serve(rows: Iterator[str], reports: TextIO) -> None:
    """Begin, take every row, and close. A part that outlives its deadline ends the process (SIGALRM)."""
    signal.alarm(START_S)
    start: Start = json.loads(next(rows))
    tracker = TRACKERS[start["tracker"]](start)
    print(json.dumps({"at": tracker.at}), file=reports, flush=True)
    signal.alarm(0)
    code = 1  # a run that is killed says nothing more: its end of the pipe closes, maybe within a line
    for line in rows:
        if not line.endswith("\n"):
            break
        row = json.loads(line)
        if "end" in row:
            code = row["end"]
            break
        signal.alarm(ROW_S)
        tracker.write(row["step"], row["values"])
        signal.alarm(0)
    signal.alarm(CLOSE_S)
    tracker.close(code)


def main() -> int:
    """Serve the run on stdin; 1 when the tracker gave up, with the reason in the last report."""
    # Whatever prints to stdout, children included, prints to the log: reports have their own handle.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(iter(sys.stdin), reports)
    except Exception as error:
        # Of any kind, wandb has many of its own: it ends the tracker, and only that.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=reports, flush=True)
        with contextlib.suppress(OSError):  # the disk that is full may be the log's too
            traceback.print_exc()
        signal.alarm(CLOSE_S)  # wandb waits at the end of its process
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
