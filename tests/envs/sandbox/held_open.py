"""A host process with two sandboxes in mid-call, for a test to kill: prints its launcher's id, and waits.

python -m tests.envs.sandbox.held_open ns MARK
"""

from __future__ import annotations

import asyncio
import sys

from envs.sandbox.base import Limits
from envs.sandbox.choosing import BUILT_IN
from tests.envs.sandbox.openings import open_sandbox

CALL = """if True:
    import os, subprocess, sys
    words = [sys.executable, "-S", "-c", "import time; time.sleep(500)", "{mark}"]
    subprocess.Popen(words, start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(words[0], words)
        os._exit(0)
    os.execv(words[0], words)
"""


async def main(backend: str, mark: str) -> None:
    limits = Limits(wall_s=300)
    async with open_sandbox(backend, limits) as one, open_sandbox(backend, limits) as other:
        code = CALL.replace("{mark}", mark)
        calls = [asyncio.create_task(box.python(code)) for box in (one, other)]
        await asyncio.sleep(1.5)
        print(BUILT_IN[backend].launcher.pid, flush=True)
        await asyncio.gather(*calls)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
