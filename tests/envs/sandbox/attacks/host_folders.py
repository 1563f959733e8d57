"""Read well-known files of a host that nothing of a sandbox needs."""

import glob

for path in (
    "/etc/shadow",
    "/etc/hostname",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/ssh/sshd_config",
    "/etc/timezone",
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
    "/var/log/dpkg.log",
    "/boot",
    "/run/docker.sock",
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "/root/.bash_history",
    "/root/.netrc",
):
    forbidden(path, lambda path=path: open(path, "rb").read(100))
for folder in (
    "/home/*",
    "/var/*",
    "/srv/*",
    "/opt/*",
    "/mnt/*",
    "/run/*",
    "/sys/*",
    "/boot/*",
    "/root/.[!p]*",
):
    if found := glob.glob(folder):
        escaped(f"names in {folder}: {found[:3]}")
