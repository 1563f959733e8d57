"""Stop ourselves: a process that is stopped does not end."""

# wall_s=0.5 status=timeout
import signal

if os.fork() == 0:
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
while True:
    pass
