"""Leave a folder, and a name that is no text, where the host will read a result."""

# read=out.txt
os.makedirs("out.txt/deeper")
os.makedirs(b"\xff\xfe")
