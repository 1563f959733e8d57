"""M12: how long an import takes, and the way from nothing to the first optimizer step, beside TRL's."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benching.children import Child, child_environment
from scripts.benching.learner import Prepared
from scripts.benching.report import Figure, Measurement, ratio_text
from scripts.benching.workload import Case
from scripts.peers import ROOT

IMPORT_S, FIRST_STEP_SHARE = 0.15, 0.5
IMPORTS = 7
LIBRARIES = "import torch; from transformers import AutoModelForCausalLM, Qwen3ForCausalLM"
"""What either side imports before it can have a model."""
TINY = Case(name="tiny", prompt_len=16, completion_len=8, num_prompts=2, group_size=4)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--starts", type=int, default=3, help="import: fresh processes of each side")


def measure(options: argparse.Namespace) -> list[Measurement]:
    bare, ours = _import_s("pass"), _import_s("import rl")
    theirs_s, ours_s = _first_steps(options.starts)
    libraries = _import_s(LIBRARIES)
    figures = [
        Figure(name="python -c pass, least of several", value=min(bare), unit="s"),
        Figure(name="import rl, least of several", value=min(ours), unit="s", target=IMPORT_S),
        Figure(name="import torch and transformers' Qwen3, least of several", value=min(libraries), unit="s"),
        Figure(name="TRL: to the first optimizer step", value=min(theirs_s), unit="s"),
        Figure(name="ours: to the first optimizer step", value=min(ours_s), unit="s"),
        Figure(
            name="ours / TRL: to the first optimizer step",
            value=min(ours_s) / min(theirs_s),
            unit="x",
            target=FIRST_STEP_SHARE,
            detail=ratio_text(ours_s, theirs_s),
        ),
    ]
    return [
        Measurement(subject="import: M12, wall of fresh processes, a tiny model in this one", figures=figures)
    ]


def _import_s(program: str) -> list[float]:
    """Wall seconds of a fresh interpreter with this program, the interpreter's own start included."""
    environment, seconds = child_environment(), []
    for _ in range(IMPORTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, check=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def _first_steps(starts: int) -> tuple[Sequence[float], Sequence[float]]:
    """Wall seconds from a process's start to a stepped optimizer, TRL's and ours in turn.

    Both get their completions: TRL's time to generate is not in it, nor ours. Ours scores, as a run
    does before its first update.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory(prefix="whetstone-bench-") as folder:
        place = Prepared(TINY, Path(folder), reference=False)
        for number in range(1 + starts):  # the first only warms the page cache
            for side, (start, do) in enumerate(((place.trl, "train"), (place.ours, "first"))):
                with start() as child:
                    seconds_of_one = _answered_s(child, do, place.path)
                if number:
                    seconds[side].append(seconds_of_one)
    return seconds


def _answered_s(child: Child, do: str, path: str) -> float:
    child.ask(do, path=path)
    return time.perf_counter() - child.started
