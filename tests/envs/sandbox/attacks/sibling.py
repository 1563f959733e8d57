"""A process that is not our child but that of the first process (CLONE_PARENT)."""

# status=ok
import time

pid = call(56, 0x8000 | 9, None, None, None, None)
if pid == 0:
    time.sleep(600)
