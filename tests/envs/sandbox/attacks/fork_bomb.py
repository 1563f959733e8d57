"""Processes without end."""

# procs=16 wall_s=8 status=ok|signal
import time

made = 0
for _ in range(300):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    made += 1
if made > 20:
    time.sleep(3)  # where it is counted by looking, that takes a moment
    escaped(f"{made} processes under a limit of 16")
