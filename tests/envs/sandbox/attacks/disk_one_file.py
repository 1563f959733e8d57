"""One file, larger than allowed."""

# disk_mb=8 wall_s=3 status=nonzero|ok|disk_limit|signal
with open("big", "wb", 0) as file:
    try:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    except OSError:
        pass
    size = file.tell()
if size > 9 << 20:
    escaped(f"{size >> 20} MiB under a limit of 8")
