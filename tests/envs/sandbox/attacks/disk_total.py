"""More bytes than allowed, in the sum of all places that can be written."""

# disk_mb=16 wall_s=5 status=nonzero|ok|disk_limit
import time

made = set()
for place in (
    os.environ["HOME"],
    os.environ["TMPDIR"],
    "/tmp",
    "/dev/shm",
    "/dev",
    "/work",
    "/box",
    "/run",
    "/var/tmp",
):
    for number in range(20):
        try:
            with open(f"{place}/big-{number}", "ab", 0) as file:
                made.add(file.name)
                for _ in range(8):
                    file.write(b"x" * (1 << 20))
        except OSError:
            continue
# Two of the places may be one, and a file is the same under both names.
total = sum({(found.st_dev, found.st_ino): found.st_size for found in map(os.stat, made)}.values())
if total > 20 << 20:
    time.sleep(1.5)  # where it is counted by looking, that takes a moment
    escaped(f"{total >> 20} MiB under a limit of 16")
