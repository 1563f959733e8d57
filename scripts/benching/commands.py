"""A child's end of a line of commands: JSON objects in on stdin, one out for each on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any


class Commands:
    """Commands until the parent goes. What libraries print goes to stderr: stdout carries answers alone."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in sys.stdin:
            yield json.loads(line)

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self._answers, flush=True)


def memory_kib(field: str) -> int:
    """VmRSS, the memory that this process holds, or VmHWM, the most that it held since `forget_peak`."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1])


def forget_peak() -> None:
    """Let VmHWM count from now on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
