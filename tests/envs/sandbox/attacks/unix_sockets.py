"""Reach a service of the host by a socket that is a file, and by one that is a name."""

import socket

for name in (
    "@SOCKET@",
    "\0@ABSTRACT@",
    "/run/docker.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/notify",
):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):

        def reach(name=name, kind=kind):
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.settimeout(0.3)
                sock.connect(name)

        forbidden(f"connect to {name!r}", reach)


def send_from_a_pair():
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"hello", "\0@ABSTRACT@-datagrams")


def send_from_a_pair_to_a_file():
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"hello", "@SOCKET@-datagrams")


def connect_a_pair():
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.connect("@SOCKET@-datagrams")
    ours.send(b"hello")


forbidden("a datagram from one of a pair, to a name", send_from_a_pair)
forbidden("a datagram from one of a pair, to a file", send_from_a_pair_to_a_file)
forbidden("a datagram from one of a pair that was connected anew", connect_a_pair)
