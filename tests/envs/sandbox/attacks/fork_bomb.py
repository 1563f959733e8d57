"""Processes without end."""

# procs=16 wall_s=2
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
time.sleep(0.3)
if made > 20:
    escaped(f"{made} processes under a limit of 16")
