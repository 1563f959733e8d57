"""Folders nested deeper than a path can be long, with long names and no permission."""

# status=ok|disk_limit

for _ in range(60):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
os.mkdir("last", 0)
