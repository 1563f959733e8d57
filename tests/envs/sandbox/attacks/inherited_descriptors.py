"""Use a descriptor that the caller forgot to close, or the sandbox's own line to the host."""

for descriptor in range(3, 4096):
    try:
        os.fstat(descriptor)
    except OSError:
        continue
    escaped(f"descriptor {descriptor} is open")
for descriptor in (0, 1, 2):
    try:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        continue
    if place.startswith(("socket", "@FOLDER@", "/dev/pts", "/dev/tty")):
        escaped(f"standard descriptor {descriptor} is {place}")
