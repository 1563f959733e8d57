import mmap
import os

m = mmap.mmap(-1, 8 << 20)
if os.fork() == 0:
    m[:3] = b"abc"
    os._exit(0)
os.wait()
print(m[:3], len(m))

# > b'abc' 8388608
