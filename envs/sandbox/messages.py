"""One message and its descriptors over a seqpacket socket."""

from __future__ import annotations

import json
import socket
from typing import Any

MAX_MESSAGE = 192 * 1024
"""Bytes of one message: below the socket's buffer."""


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; (None, []) when the other side has hung up."""
    try:
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 8)
    except ConnectionResetError:
        return None, []
    return (json.loads(data), descriptors) if data else (None, [])
