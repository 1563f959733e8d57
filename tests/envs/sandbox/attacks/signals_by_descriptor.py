"""Let the kernel send our signal: a descriptor's owner gets one when there is something to read."""

import fcntl
import signal
import socket
import time

for pid in (int("@VICTIM@"), int("@HOST_PID@"), first_process, -int("@VICTIM@")):
    ours, theirs = socket.socketpair()
    for work in (
        lambda: fcntl.fcntl(ours, 8, pid),  # F_SETOWN
        lambda: fcntl.ioctl(ours, 0x8901, (ctypes.c_int * 1)(pid)),  # FIOSETOWN
        lambda: fcntl.ioctl(ours, 0x8902, (ctypes.c_int * 1)(pid)),  # SIOCSPGRP
        lambda: fcntl.fcntl(ours, 15, bytes((ctypes.c_int * 2)(1, pid))),  # F_SETOWN_EX
    ):
        try:
            work()
            fcntl.fcntl(ours, 10, int(signal.SIGKILL))  # F_SETSIG
            fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            theirs.send(b"x")
        except OSError:
            pass
time.sleep(0.05)
