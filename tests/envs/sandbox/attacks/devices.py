"""Open devices of the machine, or make them."""

import stat

for name in (
    "mem",
    "kmem",
    "port",
    "kmsg",
    "kvm",
    "fuse",
    "net/tun",
    "vda",
    "sda",
    "nvme0n1",
    "loop-control",
    "loop0",
    "mapper/control",
    "nvidia0",
    "nvidiactl",
    "dri/card0",
    "vhost-net",
    "vsock",
    "userfaultfd",
    "hwrng",
    "rtc0",
):
    forbidden(name, os.open, f"/dev/{name}", os.O_RDONLY)
    forbidden(f"{name} to write", os.open, f"/dev/{name}", os.O_RDWR)
for kind, device in ((stat.S_IFBLK, os.makedev(254, 0)), (stat.S_IFCHR, os.makedev(1, 1))):
    forbidden("a device of our own", os.mknod, f"device-{kind}", kind | 0o666, device)
