import os

os.environ["X"] = "1"
import subprocess

print(
    subprocess.run("echo $X", shell=True, capture_output=True, text=True).stdout,
    os.path.expanduser("~") == os.getcwd(),
)

# > 1
# >  True
