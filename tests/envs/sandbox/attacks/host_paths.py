"""Learn where things lie on the host, from the mounts and from our own names."""

for name in ("mountinfo", "mounts", "maps", "cgroup", "environ", "cmdline"):
    try:
        text = open(f"/proc/self/{name}", errors="replace").read()
    except OSError:
        continue
    for secret in ("@FOLDER@", "@TARGET@"):
        if secret in text:
            escaped(f"{secret} in {name}")
