"""The same kernel by other numbers: the x32 calls, and the 32-bit ones by int 0x80."""

import mmap

for number in (39, 101, 165, 272, 321, 425, 520, 521, 544):
    result = call(0x40000000 + number, 0, 0, 0, 0, 0)
    if result != -38:
        escaped(f"x32 call {number}: {result}")


def interrupt():
    code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    pid = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if pid == os.getpid():
        escaped("a 32-bit call")


in_child(interrupt)
