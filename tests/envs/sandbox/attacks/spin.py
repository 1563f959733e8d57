"""Compute for ever."""

# wall_s=0.5 status=timeout
while True:
    pass
