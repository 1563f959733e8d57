"""Write anywhere but in the places that a program is given."""

import sysconfig

places = [
    "@TARGET@",
    "/",
    "/usr",
    "/usr/bin",
    "/usr/local/lib",
    "/etc",
    "/bin",
    "/lib",
    "/dev",
    "/proc",
    "/proc/self",
    "/var",
    "/var/tmp",
    "/home",
    "/root",
    "/run",
    "/opt",
    "/mnt",
    "/box",
    "/sandbox",
    sys.prefix,
    sys.base_prefix,
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    os.path.dirname(sys.executable),
]
for place in places:
    if place in (os.environ["HOME"], os.path.dirname(os.environ["HOME"])):
        continue
    forbidden(f"a file in {place}", lambda place=place: open(f"{place}/escaped.txt", "w"))
    forbidden(f"a folder in {place}", os.mkdir, f"{place}/escaped")
    forbidden(f"a link in {place}", os.symlink, "/etc", f"{place}/escaped-link")
    forbidden(f"a fifo in {place}", os.mkfifo, f"{place}/escaped-fifo")
for path in (
    "@CANARY@",
    sys.executable,
    os.path.realpath(sys.executable),
    "/usr/bin/env",
    "/etc/passwd",
    os.__file__,
):
    forbidden(f"append to {path}", lambda path=path: open(path, "a"))
    forbidden(f"remove {path}", os.unlink, path)
    forbidden(f"truncate {path}", os.truncate, path, 10)
    forbidden(f"rename {path}", os.rename, path, "mine")
    forbidden(f"link {path}", os.link, path, "linked")
