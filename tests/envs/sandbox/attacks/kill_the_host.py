"""Signal processes of the host by their number, by group, and all that can be reached."""

import signal

victim = int("@VICTIM@")
forbidden("see that a process of the host lives", os.kill, victim, 0)
for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
    forbidden(f"signal {number}", os.kill, victim, number)
    forbidden(f"signal {number} to the host", os.kill, int("@HOST_PID@"), number)
    forbidden(f"signal {number} to the group", os.kill, -victim, number)
handle = call(434, victim, 0)
if handle >= 0:
    refused("pidfd_send_signal", 424, handle, 15, None, 0)
refused("tgkill", 234, victim, victim, 15) if call(234, victim, victim, 0) != -3 else None
try:
    os.kill(-1, signal.SIGTERM)
except OSError:
    pass
