"""Children that ended and that nobody collects."""

# wall_s=8 procs=32 status=ok|signal
import time

made = 0
try:
    for _ in range(500):
        if os.fork() == 0:
            os._exit(0)
        made += 1
except OSError:
    pass
if made > 40:
    time.sleep(3)  # where it is counted by looking, that takes a moment
    escaped(f"{made} zombies under a limit of 32")
