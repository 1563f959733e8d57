"""Read the command lines, folders and programs of the host's processes."""

try:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
except OSError:
    pids = list(range(1, 400))
own = {os.getpid(), first_process}


def can_be_read(pid):
    try:
        return bool(open(f"/proc/{pid}/stat").read())
    except OSError:
        return False


if sum(map(can_be_read, pids)) > 4:
    escaped("processes of others can be read")
for pid in [*pids, int("@HOST_PID@")]:
    try:
        if b"@ARGV_SECRET@" in open(f"/proc/{pid}/cmdline", "rb").read():
            escaped(f"the command line of {pid}")
    except OSError:
        pass
    if pid not in own:
        forbidden(f"the program of {pid}", os.readlink, f"/proc/{pid}/exe")
        forbidden(f"the folder of {pid}", os.readlink, f"/proc/{pid}/cwd")
forbidden("descriptors of the first process", os.listdir, f"/proc/{first_process}/fd")
