"""How long a comparison has taken, the attempts that were cut off included."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rl.durable import atomic_write_json


class Wall:
    """Wall seconds of every attempt, in `out`/wall.json; the last one is this process's, as far as noted."""

    def __init__(self, out: Path) -> None:
        self._file = out / "wall.json"
        self._before: list[float] = json.loads(self._file.read_text()) if self._file.is_file() else []
        self._started = time.monotonic()

    def note(self) -> float:
        """Write down how long this attempt is on; the seconds of all attempts together.

        Noted whenever a cell ends, because one that is killed has no last word.
        """
        attempts = [*self._before, round(time.monotonic() - self._started, 1)]
        atomic_write_json(self._file, attempts)
        return sum(attempts)
