"""Where a call finds its descriptors: 0 to 2 as ever, then its private result and its payload (child.py)."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence

from envs.sandbox import child


def make_places(link: socket.socket, begins: int) -> socket.socket:
    """Close all but the link and `begins`, which comes to its place; returns the link, which lies above all.

    What comes over the link later lies above the places too, so that none is taken by another's.
    """
    last = child.BEGINS
    link_now, begins_now = (fcntl.fcntl(fd, fcntl.F_DUPFD, last + 1) for fd in (link.detach(), begins))
    os.dup2(begins_now, last)
    os.dup2(link_now, last + 1)
    for place in range(3, last):
        os.dup2(0, place)
    os.closerange(last + 2, 1 << 30)
    return socket.socket(fileno=last + 1)


def put_in_place(places: Sequence[int], descriptors: Sequence[int]) -> None:
    """Put each descriptor of a call at its place (0 to 4; 0 to 2 lead nowhere as it is), close the others."""
    for place, descriptor in zip(places, descriptors, strict=True):
        os.dup2(descriptor, place)
        os.close(descriptor)
    for place in range(3, child.BEGINS):
        if place not in places:
            os.close(place)
