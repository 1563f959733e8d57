"""Threads without end."""

# procs=16 wall_s=8 status=ok|signal
import threading
import time

threading.stack_size(1 << 16)
made = 0
for _ in range(300):
    try:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        break
    made += 1
if made > 20:
    time.sleep(3)  # where it is counted by looking, that takes a moment
    escaped(f"{made} threads under a limit of 16")
os._exit(0)
