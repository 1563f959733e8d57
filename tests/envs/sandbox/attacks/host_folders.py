"""Read well-known files of a host that nothing of a sandbox needs."""

import glob

for path in (
    "/etc/shadow",
    "/etc/hostname",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/ssh/sshd_config",
    "/etc/timezone",
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
    "/boot/*",
    "/root/.[!p]*",
):
    if found := [name for name in glob.glob(folder) if name != "/opt/whetstone"]:  # bwrap's own start
        escaped(f"names in {folder}: {found[:3]}")
