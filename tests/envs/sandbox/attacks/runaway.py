"""Processes that fork and end faster than they can be counted, and outlive the call that began them."""

# status=ok
import time

if os.fork() == 0:
    os.setsid()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass
time.sleep(0.1)
