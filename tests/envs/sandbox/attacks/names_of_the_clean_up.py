"""Folders named as a clean-up names those that it moves: moving onto one that is not empty fails."""

for place in (".", "..", "/tmp"):
    for number in range(1, 40):
        try:
            os.makedirs(f"{place}/.moved-{number}/full")
        except OSError:
            pass
os.makedirs("a/b/c/d")
