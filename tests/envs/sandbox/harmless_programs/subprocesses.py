import subprocess
import sys

print(subprocess.run("seq 5 | sort -r | head -2", shell=True, capture_output=True, text=True).stdout)
print(
    subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True).stdout
)

# > 5
# > 4
# >
# > 42
# >
