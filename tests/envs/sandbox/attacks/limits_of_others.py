"""Change limits: those of the first process and of the host, and our own upwards."""

import resource

for pid in (1, first_process, int("@HOST_PID@"), int("@VICTIM@")):
    forbidden(f"limits of {pid}", resource.prlimit, pid, resource.RLIMIT_NOFILE, (3, 3))
    forbidden(f"read limits of {pid}", resource.prlimit, pid, resource.RLIMIT_CPU)
for name in ("AS", "NPROC", "FSIZE", "NOFILE", "CORE", "CPU", "MEMLOCK", "MSGQUEUE", "STACK"):
    kind = getattr(resource, f"RLIMIT_{name}")
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY:
        escaped(f"{name} has no limit")
        continue
    forbidden(f"more {name}", resource.setrlimit, kind, (hard + 1, hard + 1))
    forbidden(
        f"no limit of {name}", resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
