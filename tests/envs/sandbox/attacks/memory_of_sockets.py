"""Memory of the kernel: what is written to sockets and read by nobody."""

# mem_mb=64 procs=64 wall_s=20 status=oom
import socket
import time


def fill():
    pairs = []
    try:
        while True:
            pair = socket.socketpair()
            pairs.append(pair)
            for end in pair:
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    except OSError:
        pass
    sent = 0
    for pair in pairs:
        for end in pair:
            try:
                while True:
                    sent += end.send(b"x" * 65536)
            except OSError:
                pass
    return pairs, sent


for _ in range(5):
    if os.fork() == 0:
        kept = fill()
        time.sleep(60)
kept, sent = fill()
if sent * 6 > 128 << 20:
    time.sleep(2)
    escaped(f"{6 * sent >> 20} MiB in sockets, held for two seconds")
