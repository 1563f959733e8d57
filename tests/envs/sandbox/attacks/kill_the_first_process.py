"""End, stop or disturb the sandbox's first process: a call that ends so would be nobody's fault."""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
for number in sorted(set(signal.valid_signals()) - {signal.SIGUSR1}):
    for pid in (first_process, 1):
        try:
            os.kill(pid, number)
            if pid == first_process:
                signal.pidfd_send_signal(os.pidfd_open(pid), number)
        except OSError:
            pass
try:
    os.kill(first_process, signal.SIGUSR1)  # last: it may end us
except OSError:
    pass
