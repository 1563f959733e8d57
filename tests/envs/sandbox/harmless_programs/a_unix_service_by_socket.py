# needs level 3
import socket

s = socket.socket(socket.AF_UNIX)
s.bind("s")
s.listen()
c = socket.socket(socket.AF_UNIX)
c.connect("s")
c.send(b"x")
print(s.accept()[0].recv(9))

# > b'x'
