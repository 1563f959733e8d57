"""Files that have no name any more, and are kept by their descriptors."""

# disk_mb=16 wall_s=4 status=nonzero|ok|disk_limit
import time

kept, total = [], 0
for number in range(10):
    file = open(f"f{number}", "wb", 0)
    os.unlink(f"f{number}")
    kept.append(file)
    try:
        for _ in range(6):
            total += file.write(b"x" * (1 << 20))
    except OSError:
        break
if total > 24 << 20:
    time.sleep(1.5)  # where it is counted by looking, that takes a moment
    escaped(f"{total >> 20} MiB without a name under a limit of 16")
