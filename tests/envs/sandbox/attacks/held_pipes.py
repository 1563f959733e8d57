"""End at once, and leave processes that hold our outputs: who reads to their end waits for ever."""

# status=ok
import time

for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
print("done", flush=True)
