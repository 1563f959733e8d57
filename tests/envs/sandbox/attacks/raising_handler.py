"""A signal handler that raises, again and again, also in what comes after the program."""

# status=nonzero|signal|ok wall_s=3
import signal


def handler(*_):
    raise ZeroDivisionError


signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.00005)
while True:
    pass
