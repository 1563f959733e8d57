"""Shared memory is touched and its pages are given back: it is still there, and no process shows it."""

# mem_mb=128 wall_s=6 status=oom
import mmap
import time

kept = []
for _ in range(6):
    area = mmap.mmap(-1, 60 << 20)
    for start in range(0, len(area), 4096):
        area[start] = 1
    area.madvise(mmap.MADV_DONTNEED)
    kept.append(area)

time.sleep(2)
escaped("it was held for two seconds")
