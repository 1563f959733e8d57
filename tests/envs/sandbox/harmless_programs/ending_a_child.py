import signal
import subprocess

p = subprocess.Popen(["sleep", "60"])
p.terminate()
print(p.wait() == -signal.SIGTERM)
try:
    subprocess.run(["sleep", "60"], timeout=0.1)
except subprocess.TimeoutExpired:
    print("late")

# > True
# > late
