"""Start a program with more arguments and environment than the kernel takes."""

# status=ok
import subprocess

for size in (1 << 17, 1 << 21, 1 << 24):
    for arguments in (["/bin/true", "x" * size], ["/bin/true", *["y"] * (size // 64)]):
        try:
            subprocess.run(arguments, env={"X": "z" * size})
        except OSError:
            pass
