"""A chain of a thousand processes, each the child of the one before: what follows it by recursion fails."""

# procs=1200 wall_s=4 mem_mb=2000 status=ok|timeout
import time

reader, writer = os.pipe()
for depth in range(1100):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid:
        if depth:
            time.sleep(60)
        os.close(writer)
        os.read(reader, 1)
        time.sleep(0.3)
        os._exit(0)
os.write(writer, b"x")
time.sleep(60)
