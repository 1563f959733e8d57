"""Wait for what never comes."""

# wall_s=0.5 status=timeout
import threading

print("before", flush=True)
threading.Event().wait()
