"""Write to our own standard input, which is a file in memory of the host's that no limit bounds."""

forbidden("write to it", os.write, 0, b"x")
forbidden("lengthen it", os.ftruncate, 0, 1 << 30)
forbidden("fill it", os.posix_fallocate, 0, 0, 1 << 30)
