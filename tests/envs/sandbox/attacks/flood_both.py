"""Output without end on both, from several processes."""

# wall_s=5 output_kb=16 status=output_limit
for _ in range(3):
    os.fork()
while True:
    os.write(1, b"x" * 65536)
    os.write(2, b"y" * 65536)
