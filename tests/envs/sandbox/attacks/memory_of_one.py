"""More memory than allowed, in one process."""

# mem_mb=128 wall_s=4 status=oom
import time

held = [bytearray(b"x" * (1 << 20)) for _ in range(300)]

time.sleep(0.6)
escaped("it was held for more than half a second")
