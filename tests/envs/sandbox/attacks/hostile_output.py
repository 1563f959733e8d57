"""Bytes that are no text, control characters, a terminal's commands: the host's logs must stay text."""

# status=ok
os.write(1, bytes(range(256)) * 8 + b"\x1b[2J\x1b]0;x\x07\r\n\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80")
os.write(2, b"\0\x1b[31m" + "\u202e\u2028".encode() + b"\x9b31m\xc2\x9b31m")
