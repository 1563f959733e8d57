"""Type into the terminal of who started us."""

for name in ("/dev/tty", "/dev/ptmx", "/dev/console", "/dev/pts/0", "/dev/tty0", "/dev/vcs"):
    forbidden(name, os.open, name, os.O_RDWR | os.O_NOCTTY)
key = ctypes.create_string_buffer(b"x")
for request in (0x5412, 0x541C, 1 << 32 | 0x5412, 1 << 63 | 0x541C, 0xFFFFFFFF00005412):
    request = request - (1 << 64) if request >> 63 else request
    for descriptor in range(3):
        refused(f"ioctl {request:x} of {descriptor}", 16, descriptor, request, key)
