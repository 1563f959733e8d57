"""Read at address 0."""

# status=signal
ctypes.string_at(0)
