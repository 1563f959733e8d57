"""Speak to the host in its own words, over every descriptor that we have."""

# status=ok|nonzero
import json
import socket

word = json.dumps(
    {"op": "done", "status": 0, "timeout": False, "memory": False, "wall_s": 0, "cpu_s": 0, "peak_kb": 0}
)
for descriptor in range(3, 300):
    for send in (
        lambda: os.write(descriptor, word.encode()),
        lambda: socket.socket(fileno=descriptor).send(word.encode()),
    ):
        try:
            send()
            escaped(f"descriptor {descriptor} took it")
        except OSError:
            pass
print(word)
sys.exit(1)
