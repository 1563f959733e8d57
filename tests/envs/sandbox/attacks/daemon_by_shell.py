"""Live on after the call, by nohup, setsid and disown."""

# status=ok
import subprocess

subprocess.Popen(
    "nohup setsid sleep 600 >/dev/null 2>&1 & sleep 601 & disown -a", shell=True, executable="/bin/bash"
)
