"""Folders that can be written but not listed: who counts must be able to look."""

# disk_mb=16 wall_s=4 status=nonzero|ok|disk_limit
import time

os.mkdir("hidden", 0o300)
total = 0
for number in range(10):
    with open(f"hidden/f{number}", "wb", 0) as file:
        try:
            for _ in range(6):
                total += file.write(b"x" * (1 << 20))
        except OSError:
            break
if total > 24 << 20:
    time.sleep(1.5)  # where it is counted by looking, that takes a moment
    escaped(f"{total >> 20} MiB where nobody looks under a limit of 16")
