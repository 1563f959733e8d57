"""Signal another sandbox over a file that both can only read: a lock, a lease, a watch. Two run at once."""

# again=yes
import fcntl
import struct
import time

path = os.path.realpath(sys.executable)
watcher = call(294, 0o4000)  # inotify_init1
if watcher >= 0:
    call(254, watcher, path.encode(), 0x20)  # IN_OPEN
own = 0
shared = []
end = time.monotonic() + 0.6
while time.monotonic() < end:
    file = os.open(path, os.O_RDONLY)
    own += 1
    shared.append(file)
    try:
        fcntl.flock(shared[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        escaped("the lock of another sandbox")
    except OSError:
        pass
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 4711, 1, 0)
    try:
        fcntl.fcntl(shared[0], fcntl.F_SETLK, lock)
        for number in (5, 36):  # F_GETLK, F_OFD_GETLK
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 4711, 1, 0)
            if struct.unpack("hhqqi4x", fcntl.fcntl(shared[0], number, asked))[0] != fcntl.F_UNLCK:
                if number == 5:  # the other one sees our own lock too
                    escaped("the record lock of another sandbox")
    except OSError:
        pass
    time.sleep(0.05)
forbidden("a lease", fcntl.fcntl, shared[0], 1024, fcntl.F_RDLCK)
forbidden("a directory's notice", fcntl.fcntl, os.open(os.path.dirname(path), os.O_RDONLY), 1026, 1)
if watcher >= 0:
    try:
        if (events := len(os.read(watcher, 1 << 16)) // 16) > own:
            escaped(f"{events} opens were seen, {own} were our own")
    except OSError:
        pass
