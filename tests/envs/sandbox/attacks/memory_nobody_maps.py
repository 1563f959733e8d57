"""Memory that belongs to no process: files in memory, shared segments."""

# mem_mb=128
refused("memfd_create", 319, b"x", 0)
refused("memfd_secret", 447, 0)
refused("shmget", 29, 0, 1 << 20, 0o1600)
refused("shmat", 30, 0, None, 0)
forbidden("a memory file", lambda: os.memfd_create("x"))
