"""Read what the kernel says of the whole machine. (bwrap can only mount a whole /proc.)"""

# not=bwrap
for path in (
    "/proc/cmdline",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/config.gz",
    "/proc/iomem",
    "/proc/net/unix/x",
    "/proc/sys/kernel/hostname",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/mounts/x",
    "/proc/keys",
    "/proc/sched_debug",
    "/sys/kernel/notes",
    "/sys/kernel/debug",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/*",
):
    forbidden(path, lambda path=path: open(path, "rb").read(100))
