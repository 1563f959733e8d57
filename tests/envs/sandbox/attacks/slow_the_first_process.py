"""Starve the sandbox's first process, so that it misses the deadline of this call."""

# wall_s=1 status=timeout|nonzero
import signal

for pid in (first_process, 1, int("@VICTIM@")):
    if pid:
        forbidden(f"the priority of {pid}", os.setpriority, os.PRIO_PROCESS, pid, 19)
        forbidden(f"the processors of {pid}", os.sched_setaffinity, pid, {0})
        forbidden(f"the scheduler of {pid}", os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))
        refused(f"sched_setattr of {pid}", 314, pid, (ctypes.c_uint32 * 12)(48, 5), 0)
        refused(f"ioprio_set of {pid}", 251, 1, pid, 3 << 13)
forbidden("the priority of all of our user", os.setpriority, os.PRIO_USER, 0, 19)
forbidden("the priority of a group", os.setpriority, os.PRIO_PGRP, 1, 19)
refused("ioprio_set of our user", 251, 3, os.getuid(), 3 << 13)
refused("a lock step of processors", 157, 62, 1, first_process, 1, None)  # PR_SCHED_CORE create
for _ in range(50):
    if os.fork() == 0:
        while True:
            os.getppid()
while True:
    try:
        os.kill(first_process, signal.SIGCONT)
    except OSError:
        pass
