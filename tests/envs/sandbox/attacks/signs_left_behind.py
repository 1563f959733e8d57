"""Leave signs in every place that could be shared, and look for those of another sandbox. Two run at once."""

# again=yes
import glob
import secrets
import socket
import time

own = f"whetstone-sign-{secrets.token_hex(4)}"
places = (
    "/tmp",
    "/dev/shm",
    "/var/tmp",
    "/run",
    "/dev/mqueue",
    "/dev",
    os.environ["HOME"],
    os.environ["TMPDIR"],
)
for place in places:
    try:
        open(f"{place}/{own}", "w").close()
    except OSError:
        pass
try:
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name.bind("\0whetstone-sign")
except PermissionError:
    pass
except OSError as error:
    escaped(f"a name of another sandbox: {error}")
time.sleep(0.4)
for place in places:
    if others := [found for found in glob.glob(f"{place}/whetstone-sign-*") if not found.endswith(own)]:
        escaped(f"signs of another sandbox: {others}")
