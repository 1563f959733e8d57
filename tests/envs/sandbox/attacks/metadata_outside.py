"""Change what Landlock does not hold: mode, owner, times and attributes of a file of our own user.

The host looks at the file afterwards.
"""

for path in ("@CANARY@", "@TARGET@", os.path.dirname("@CANARY@")):
    for work in (
        lambda: os.chmod(path, 0o777),
        lambda: os.utime(path, (1, 1)),
        lambda: os.setxattr(path, "user.escaped", b"1"),
        lambda: os.chown(path, -1, os.getgid()),
        lambda: os.truncate(path, 1),
        lambda: call(452, -100, path.encode(), 0o777, 0),  # fchmodat2
        lambda: call(132, path.encode(), None),  # utime
        lambda: call(235, path.encode(), None),  # utimes
        lambda: call(261, -100, path.encode(), None),  # futimesat
        lambda: call(463, -100, path.encode(), 0, b"user.escaped", None, 0),  # setxattrat
    ):
        try:
            work()
        except OSError:
            pass
