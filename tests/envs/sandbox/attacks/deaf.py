"""Ignore every signal, the one of the CPU limit too."""

# wall_s=4 cpu_s=1 status=timeout
import signal

for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    pass
