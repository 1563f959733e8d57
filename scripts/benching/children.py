"""The parent's end: child processes that stay alive and do one thing a command, with one thread each."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

from scripts.peers import ROOT, TRL, bring_up

ENDS_S = 20.0


class ChildFailed(RuntimeError):
    """A child ended or did not answer in time; the message holds the end of what it said."""


def child_environment() -> dict[str, str]:
    """The same for both sides: one thread, the allocator as our learner has it, nothing from a network."""
    # It imports Ray and torch, and other subjects of the bench need neither.
    from rl.workers import LEARNER_ENVIRONMENT

    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("WHETSTONE_")},
        **LEARNER_ENVIRONMENT,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def trl_python() -> str:
    """The interpreter of .venv-trl, made here if there is none. Raises scripts._venv.Stop."""
    bring_up(TRL)
    return str(TRL.python)


class Child:
    """`python -m module arguments` in a process of its own, which a `with` ends."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        python: str = sys.executable,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self.started = time.perf_counter()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=ROOT,
            start_new_session=True,
            env=child_environment() | dict(extra or {}),
        )
        self._stdin: Any = self._process.stdin
        self._stdout: Any = self._process.stdout

    def ask(self, do: str, *, timeout_s: float = 600.0, **values: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            ChildFailed: the child ended, or `timeout_s` passed.
        """
        try:
            self._stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            self._process.wait()
            raise self._failed(do, f"ended ({self._process.returncode}) before it") from None
        readable, _, _ = select.select([self._stdout], [], [], timeout_s)
        line = self._stdout.readline() if readable else b""
        if not line:
            how = f"did not answer in {timeout_s:g} s"
            if readable:
                how = f"ended ({self._process.wait()}) at it"
            raise self._failed(do, how)
        return json.loads(line)

    def _failed(self, do: str, how: str) -> ChildFailed:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")[-3000:]
        return ChildFailed(f"{self.module} {how} ({do}):\n{said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # a command that a dead child never read
            self._stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDS_S)  # without commands it ends by itself, an engine below it too
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._stdout, self._said):
            pipe.close()


def measure_in_turns(
    sides: Mapping[str, Any], *, rounds: int, warm_ups: int = 2
) -> dict[str, list[dict[str, Any]]]:
    """The answers of each side (a function without arguments), by round, after some that do not count."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(warm_ups + rounds):
        for name, side in sides.items():
            answer = side()
            if number >= warm_ups:
                answers[name].append(answer)
    return answers


def column(answers: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """One number of every answer."""
    return [float(answer[name]) for answer in answers]
