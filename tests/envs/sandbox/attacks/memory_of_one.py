"""More memory than allowed, in one process."""

# mem_mb=128 wall_s=6 status=oom
import time

held = [bytearray(b"x" * (1 << 20)) for _ in range(300)]

time.sleep(2)
escaped("it was held for two seconds")
