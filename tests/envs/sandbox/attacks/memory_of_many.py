"""More memory than allowed in the sum of processes, each of which has less."""

# mem_mb=192 wall_s=6 status=oom
import time

for _ in range(5):
    if os.fork() == 0:
        held = bytearray(b"x" * (80 << 20))
        time.sleep(60)
time.sleep(0.5)

time.sleep(2)
escaped("it was held for two seconds")
