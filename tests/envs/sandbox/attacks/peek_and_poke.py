"""Look into the first process, and into others, or take their descriptors."""

buffer = ctypes.create_string_buffer(8)
piece = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
for pid in (1, first_process, int("@HOST_PID@")):
    refused(f"ptrace attach {pid}", 101, 16, pid, None, None)
    refused(f"ptrace seize {pid}", 101, 0x4206, pid, None, None)
    refused(f"process_vm_readv {pid}", 310, pid, piece, 1, piece, 1, 0)
    refused(f"process_vm_writev {pid}", 311, pid, piece, 1, piece, 1, 0)
    refused(f"kcmp {pid}", 312, pid, os.getpid(), 0, 0, 0)
    refused(f"move_pages {pid}", 279, pid, 0, None, None, None, 0)
    refused(f"migrate_pages {pid}", 256, pid, 0, None, None)
    handle = call(434, pid, 0)  # pidfd_open
    for descriptor in range(12):
        if handle >= 0:
            refused(f"descriptor {descriptor} of {pid}", 438, handle, descriptor, 0)
    if handle >= 0:
        refused(f"process_madvise {pid}", 440, handle, piece, 1, 21, 0)
        refused(f"process_mrelease {pid}", 448, handle, 0)
    for name in (
        "mem",
        "fd/0",
        "root/etc/passwd",
        "cwd",
        "map_files",
        "stack",
        "syscall",
        "environ",
        "auxv",
        "maps",
    ):
        forbidden(
            f"/proc/{pid}/{name}",
            lambda pid=pid, name=name: open(f"/proc/{pid}/{name}", "rb").read(1) or 1 / 0,
        )
refused("ptrace traceme", 101, 0, 0, None, None)
