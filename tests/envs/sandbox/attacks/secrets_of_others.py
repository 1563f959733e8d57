"""Find a secret of the caller's environment: in any process's, in the memory that we were forked from."""

import re

secret = "@TERCES@"[::-1].encode()  # written backwards, so that this text is no find
if any(secret.decode() in value for value in os.environ.values()):
    escaped("it is in os.environ")
try:
    others = [name for name in os.listdir("/proc") if name.isdigit()]
except OSError:
    others = []
for pid in {*others, "1", str(first_process), "self", "thread-self", "@HOST_PID@"}:
    try:
        if secret in open(f"/proc/{pid}/environ", "rb").read():
            escaped(f"it is in the environment of {pid}")
    except OSError:
        pass
for pid in {"1", str(first_process), "@HOST_PID@"}:
    forbidden(f"memory of {pid}", lambda pid=pid: open(f"/proc/{pid}/mem", "rb"))
    forbidden(f"maps of {pid}", lambda pid=pid: open(f"/proc/{pid}/maps").read(10) or 1 / 0)
    forbidden(f"environment of {pid}", lambda pid=pid: open(f"/proc/{pid}/environ", "rb"))
try:
    maps, memory = open("/proc/self/maps").read(), open("/proc/self/mem", "rb", 0)
except OSError:
    maps = ""
for start, end in re.findall(r"^(\w+)-(\w+) r", maps, re.M):
    try:
        memory.seek(int(start, 16))
        if memory.read(min(int(end, 16) - int(start, 16), 1 << 26)).count(secret) > 1:
            escaped("it is in the memory that we came with")  # one copy is ours
    except (OSError, ValueError, OverflowError):
        pass
