"""Change settings of the kernel: they are checked against the user id of the machine."""

for name in (
    "kernel/core_pattern",
    "kernel/modprobe",
    "vm/panic_on_oom",
    "vm/drop_caches",
    "kernel/sysrq",
    "net/ipv4/ip_forward",
):
    forbidden(name, os.open, f"/proc/sys/{name}", os.O_WRONLY)
for path in (
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/hostname",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/proc/irq/default_smp_affinity",
):
    forbidden(path, os.open, path, os.O_WRONLY)
for pid in ("1", str(first_process), "@HOST_PID@"):
    for name in (
        "oom_score_adj",
        "uid_map",
        "autogroup",
        "timerslack_ns",
        "clear_refs",
        "comm",
        "coredump_filter",
    ):
        try:
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        except OSError:
            continue
        forbidden(f"{name} of {pid}", os.write, descriptor, b"1\n")
