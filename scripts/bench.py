"""Measure what whetstone costs, on this machine, as ratios from one run.

    python -m scripts.bench sandbox reward [--json FILE]

Each figure stands beside its target; what misses it is printed as MISSED, and the exit code is then 1. Run it
on a machine that does nothing else: the ratios bear some noise, the milliseconds do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from scripts.benching import crossing, head, learner, reward, sandbox

SUBJECTS: dict[str, Any] = {
    "sandbox": sandbox,
    "reward": reward,
    "learner": learner,
    "head": head,
    "bytes": crossing,
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
            "measurements": [measurement.to_dict() for measurement in measurements],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(measurement.is_sound for measurement in measurements) else 1


if __name__ == "__main__":
    sys.exit(main())
