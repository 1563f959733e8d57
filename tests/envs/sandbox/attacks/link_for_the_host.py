"""Leave a symbolic link where the host will read a result."""

# read=out.txt
os.symlink("@CANARY@", "out.txt")
