"""Output without end, on stdout."""

# wall_s=5 output_kb=16 status=output_limit
while True:
    os.write(1, b"x" * 65536)
