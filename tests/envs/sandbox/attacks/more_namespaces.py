"""Make a namespace, or enter one: a new user is root in it."""

for name, flag in {
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "time": 0x80,
}.items():
    refused(f"unshare {name}", 272, flag)
    if name != "time":
        pid = call(56, flag | 17, None, None, None, None)
        if pid == 0:
            os._exit(0)
        if pid > 0:
            escaped(f"clone {name}")
    forbidden(
        f"enter {name} of the first process",
        lambda name=name: call(308, os.open(f"/proc/{first_process}/ns/{name}", 0), 0) + 1 or 1 / 0,
    )
    try:
        own = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    except OSError:
        continue
    refused(f"setns {name}", 308, own, flag)
arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
pid = call(435, arguments, 88)
if pid == 0:
    os._exit(0)
if pid != -38:
    escaped(f"clone3: {pid}")
