"""Measure what whetstone costs, on this machine, as ratios from one run.

    python -m scripts.bench sandbox reward [--json FILE]
    python -m scripts.bench learner head step bytes import growth [--json FILE]

Each figure stands beside its target; what misses it is printed as MISSED, and the exit code is then 1. Run it
on a machine that does nothing else: the ratios bear some noise, the milliseconds do not. The second line has
TRL beside ours in one run; TRL comes into .venv-trl at its first use (scripts/peers.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.benching import cold_start, crossing, growth, head, learner, reward, sandbox, step
from scripts.peers import TRL, PeerVenv

SUBJECTS: dict[str, Any] = {
    "sandbox": sandbox,
    "reward": reward,
    "learner": learner,
    "head": head,
    "step": step,
    "bytes": crossing,
    "import": cold_start,
    "growth": growth,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subjects", nargs="+", choices=SUBJECTS, metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    for subject in SUBJECTS.values():
        subject.add_options(parser)
    options = parser.parse_args(argv)
    measurements = []
    for name in dict.fromkeys(options.subjects):
        for measurement in SUBJECTS[name].measure(options):
            measurements.append(measurement)
            print("\n".join(measurement.lines()), flush=True)
    if options.json:
        record = {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "processor": processor(),
            "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "ray")},
            "trl": pins(TRL),
            "threads_a_side": 1,
            "measurements": [measurement.to_dict() for measurement in measurements],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(measurement.is_sound for measurement in measurements) else 1


def processor() -> str:
    """Its name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def pins(venv: PeerVenv) -> list[str]:
    """What a peer's environment has besides ours, name==release."""
    lines = venv.pins.read_text().splitlines()
    return [line.split()[0] for line in lines if "==" in line]


if __name__ == "__main__":
    sys.exit(main())
