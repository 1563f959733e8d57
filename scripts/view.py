"""Look at runs in a browser: curves, groups of trajectories, and every token of any one of them.

    python -m scripts.view runs/NAME                                 # while it trains or afterwards
    python -m scripts.view runs/NAME runs/OTHER                      # the curves of both in one chart
    python -m scripts.view runs/NAME --export step.html --step 12    # one file that needs no server

The page is served on loopback only, to this machine alone; `ssh -L 8765:localhost:8765 MACHINE` brings
it elsewhere. Nothing is written to a run and nothing is loaded from the network.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scripts.viewer.api import Answers
from scripts.viewer.export import NothingToExport, NotWritten, chosen_rows, write_export
from scripts.viewer.index import UnknownLine
from scripts.viewer.run import NotViewable, ViewedRun, open_runs
from scripts.viewer.server import PortInUse, loopback_socket, serve


class BadOptions(ValueError):
    """Options that do not go together."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is looked at, and how."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs; the curves of all are drawn together."""
    port: int = 8765
    """Port on loopback; 0 takes a free one."""
    export: Path | None = None
    """Write this new HTML file instead of serving: metrics, and one step or trajectory of the first run."""
    step: int | None = None
    """Step to export, training and evaluation."""
    trajectory: int | None = None
    """Trajectory to export: its line in trajectories.jsonl, which the page shows."""

    def check(self) -> None:
        """Raises BadOptions."""
        if not self.runs:
            raise BadOptions("no run was given: name at least one directory, for instance runs/NAME")
        wanted = [value for value in (self.step, self.trajectory) if value is not None]
        if self.export is None and wanted:
            raise BadOptions("--step and --trajectory choose what --export FILE.html writes; give it too")
        if self.export is not None and len(wanted) != 1:
            raise BadOptions("--export takes either --step N or --trajectory LINE")
        if self.export is not None and not self.export.absolute().parent.is_dir():
            raise BadOptions(f"--export {self.export}: there is no folder {self.export.absolute().parent}")
        if self.export is not None and os.path.lexists(self.export):
            raise BadOptions(f"--export {self.export} exists already: give another name, or remove it first")
        if not 0 <= self.port < 65536:
            raise BadOptions(f"--port {self.port}: expected 0 to 65535")


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    try:
        options.check()
        runs = open_runs(list(options.runs))
        if options.export is not None:
            export(runs, options)
        else:
            look(runs, options.port)
    except (BadOptions, NotViewable, NothingToExport, NotWritten, UnknownLine, PortInUse) as error:
        print(f"Nothing to see: {error}", file=sys.stderr)
        return 2
    return 0


def export(runs: list[ViewedRun], options: Options) -> None:
    """Write the file; lines that cannot be read are named on standard error."""
    assert options.export is not None
    for run in runs:
        run.refresh_fully()
        for text in run.problem_texts:
            print(f"WARNING: {run.path}: {text}", file=sys.stderr)
    rows = chosen_rows(runs[0], step=options.step, trajectory=options.trajectory)
    write_export(options.export, Answers(runs), rows)
    size = options.export.stat().st_size
    noun = "trajectory" if len(rows) == 1 else "trajectories"
    print(f"{options.export}: {len(rows)} {noun}, {size / 1e6:.1f} MB")


def look(runs: list[ViewedRun], port: int) -> None:
    """Serve until Ctrl-C."""
    listener = loopback_socket(port)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/  shows {', '.join(run.name for run in runs)}")
    print("Ctrl-C ends it.", flush=True)
    try:
        asyncio.run(serve(Answers(runs), listener))
    except KeyboardInterrupt:
        print("ended")


if __name__ == "__main__":
    sys.exit(main())
