"""One folder for the temporary files of a run's processes, and who removes it whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from recipes.reaper import KEEP

_MAX_LENGTH = 30
"""Of the folder that holds it: names of sockets, which Ray puts five levels deeper, have 107 characters."""


class Leftovers:
    """The folder, and the pipe to the process that removes it when this one has ended.

    Ray's session, engines' sockets and sandboxes' files come into it, since every process of the run takes it
    for its folder of temporary files.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _MAX_LENGTH else "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="whetstone-", dir=parent))
        reaper = Path(__file__).with_name("reaper.py")
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(reaper), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C, or a kill of the run's group, does not end it
            cwd="/",
        )
        os.environ["TMPDIR"] = str(self.folder)
        tempfile.tempdir = None  # Python keeps the one that it found first

    def keep(self) -> None:
        """Leave the folder where it is: a run that went wrong has the logs of its processes in it."""
        if self._reaper.stdin is not None:
            with suppress(OSError):
                self._reaper.stdin.write(KEEP)
                self._reaper.stdin.flush()


def keep_logs() -> Path | None:
    """Leave this process's folder, if it has made one, when it ends; where that is."""
    if not leftovers.cache_info().currsize:
        return None
    leftovers().keep()
    return leftovers().folder


@cache
def leftovers() -> Leftovers:
    """This process's own; made when it is first asked for."""
    return Leftovers()
