"""Leave a file of far more bytes than the host wants to hold."""

# read=out.txt
with open("out.txt", "w") as file:
    file.truncate(60 << 20)
