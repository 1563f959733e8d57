"""Reach the host's own services, the network, and a cloud's metadata service."""

import socket

addresses = [
    ("127.0.0.1", int("@PORT@")),
    ("localhost", int("@PORT@")),
    ("10.0.0.1", 80),
    ("8.8.8.8", 53),
    ("169.254.169.254", 80),
    ("192.168.0.1", 80),
    ("@ADDRESS@", int("@PORT@")),
]
for address in addresses:
    forbidden(f"connect to {address}", socket.create_connection, address, timeout=0.3)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.sendto(b"hello", ("@ADDRESS@", int("@UDP_PORT@")))
            sock.sendto(b"hello", ("127.0.0.1", int("@UDP_PORT@")))  # the host looks whether it came
            sock.sendto(b"hello", ("255.255.255.255", int("@UDP_PORT@")))
    except OSError:
        pass
forbidden("connect by IPv6", socket.create_connection, ("::1", int("@PORT@")), timeout=0.3)
forbidden("a name", socket.getaddrinfo, "example.com", 80)
