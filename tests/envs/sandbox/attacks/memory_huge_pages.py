"""Huge pages, which are counted apart, and locked memory, which cannot be taken back."""

import mmap

flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
forbidden("huge pages", mmap.mmap, -1, 2 << 20, flags=flags)
if call(151, 3) == 0:  # mlockall
    escaped("all of our memory is locked")
