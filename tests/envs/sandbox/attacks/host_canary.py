"""Read a file of the host whose path is known, by every road to it."""

path = "@CANARY@"
roads = [
    path,
    "../" * 40 + path[1:],
    f"/proc/self/root{path}",
    f"/proc/1/root{path}",
    f"/proc/{first_process}/cwd{path}",
]
for road in roads:
    forbidden(road, lambda road=road: open(road).read())
    forbidden(f"list beside {road}", lambda road=road: os.listdir(os.path.dirname(road) or "/"))
forbidden("a hard link to it", os.link, path, "linked.txt")
os.symlink(path, "soft.txt")
forbidden("a symbolic link to it", lambda: open("soft.txt").read())


def through_a_path_descriptor():
    descriptor = os.open(path, os.O_PATH)
    return open(f"/proc/self/fd/{descriptor}").read()


forbidden("a path descriptor", through_a_path_descriptor)
forbidden("rename", os.rename, path, "mine.txt")
forbidden("run it", os.execv, path, [path])
