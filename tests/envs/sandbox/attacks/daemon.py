"""Live on after the call: forked twice, in a session of its own, deaf to every signal."""

# status=ok
import signal
import time

for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                try:
                    signal.signal(number, signal.SIG_IGN)
                except OSError:
                    pass
            for descriptor in range(3):
                os.close(descriptor)
            time.sleep(600)
        os._exit(0)
