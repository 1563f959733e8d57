"""Empty files without end. (bwrap has no such limit: there the size bounds them.)"""

# disk_mb=100 wall_s=5 files=2000 status=ok|disk_limit|timeout not=bwrap
import time

made = 0
for place in (os.environ["HOME"], os.environ["TMPDIR"], "/dev/shm"):
    for number in range(4000):
        try:
            os.close(os.open(f"{place}/f{number}", os.O_CREAT | os.O_WRONLY))
            made += 1
        except OSError:
            break
if made > 2100:
    time.sleep(1.5)  # where it is counted by looking, that takes a moment
    escaped(f"{made} files under a limit of 2000")
