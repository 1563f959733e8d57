"""Make a set-uid program, and run those that the machine has."""

import shutil
import subprocess

shutil.copy("/bin/true", "mine")
os.chmod("mine", 0o6755)
for program in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/passwd", "/usr/bin/sudo", "/usr/bin/newgrp"):
    if os.path.exists(program):
        subprocess.run([program, "--help"], capture_output=True)
forbidden("become root", os.setuid, 0)
forbidden("become the group of root", os.setgid, 0)
forbidden("groups of root", os.setgroups, [0])
every = (ctypes.c_uint32 * 6)(*[2**32 - 1] * 6)
refused("every capability", 126, (ctypes.c_uint32 * 2)(0x20080522, 0), every)
if os.getuid() == 0:
    escaped("we are root")
