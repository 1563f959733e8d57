"""Files that have neither a name nor a descriptor any more, and are kept by being mapped."""

# disk_mb=16 wall_s=4 status=nonzero|ok|disk_limit|signal|oom
import mmap
import time

kept, total = [], 0
for number in range(10):
    with open(f"f{number}", "wb+", 0) as file:
        os.unlink(f"f{number}")
        try:
            total += file.write(b"x" * (6 << 20))
        except OSError:
            break
        kept.append(mmap.mmap(file.fileno(), 6 << 20))
if total > 24 << 20:
    time.sleep(1.5)  # where it is counted by looking, that takes a moment
    escaped(f"{total >> 20} MiB that are only mapped under a limit of 16")
