"""Take every permission away, from our own folder too, and leave it so."""

os.makedirs("a/b/c")
for path in ("a/b/c/f.txt", "a/f.txt"):
    open(path, "w").close()
for path in (
    "a/b/c/f.txt",
    "a/b/c",
    "a/b",
    "a",
    ".",
    "..",
    "/tmp",
    "/dev/shm",
    os.environ["TMPDIR"],
    os.environ["HOME"],
):
    try:
        os.chmod(path, 0)
    except OSError:
        pass
