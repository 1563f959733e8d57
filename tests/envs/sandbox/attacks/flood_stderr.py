"""Output without end, on stderr."""

# wall_s=5 output_kb=16 status=output_limit
while True:
    os.write(2, b"\xff\0" * 32768)
