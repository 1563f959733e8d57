"""The Python under which a user's reward runs: this one, or one of the user's own with other packages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MIN_VERSION = (3, 11)

PROBE = """import sys
print("python %d %d" % sys.version_info[:2])
sys.path.insert(0, sys.argv[1])
import rewards.scoring_child"""
"""Says which version runs it, then whether it can run the child's side, which needs no package."""

PROBE_S = 60.0


def executable_of(python: str) -> str:
    """What to execute for the setting reward_python. Links stay: by them a virtual environment is found."""
    return str(Path(python).expanduser().absolute()) if python else sys.executable


def require_interpreter(python: str) -> None:
    """Raise ValueError where `python` is no interpreter that a reward can run under."""
    given = f"reward_python = {python!r}"
    try:
        done = subprocess.run(
            [executable_of(python), "-c", PROBE, str(ROOT)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROBE_S,
            check=False,
        )
    except OSError as error:
        raise ValueError(
            f"{given} cannot be run: {error.strerror}; expected the path of a Python, as my_venv/bin/python"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{given} had not said its version after {PROBE_S:g} s") from None
    said = done.stdout.decode("utf-8", "replace").strip()
    told = re.search(r"^python (\d+) (\d+)$", said, re.MULTILINE)
    if told is None:
        raise ValueError(
            f"{given} is no Python that can be used: it ended with exit status {done.returncode} and said "
            f"{said or 'nothing'}"
        )
    if (version := (int(told[1]), int(told[2]))) < MIN_VERSION:
        wanted, found = (".".join(map(str, numbers)) for numbers in (MIN_VERSION, version))
        raise ValueError(f"{given} is Python {found}; expected {wanted} or newer")
    if done.returncode:
        raise ValueError(f"{given} cannot run rewards/scoring_child.py:\n{said}")
