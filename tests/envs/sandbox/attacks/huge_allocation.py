"""Ask for more memory than any machine has."""

# status=oom
bytearray(1 << 45)
