"""Leave a folder that is a symbolic link, on the way to a file that the host will read."""

# read=sub@CANARY@
os.symlink("/", "sub")
