"""Names with line ends, quotes, bytes that are no text, 255 bytes: listing or removing them may fail."""

for name in (
    b"a\nb",
    b"\xff\xfe",
    b"'\"; rm -rf *",
    b"-rf",
    b"x" * 255,
    b"..a",
    b"\x1b[2J",
    "\u202e".encode(),
):
    with open(name, "w") as file:
        file.write("x")
    os.makedirs(name + b"d" if len(name) < 255 else b"y" * 255)
