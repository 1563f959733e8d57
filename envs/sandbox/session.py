"""A session: calls that share one Python namespace, in a process that lives from one to the next.

Its process says itself when a call has ended. What it says is only believed of itself: a word that is none
ends it. Whatever else ends it (a deadline, a limit, `exit()`) ends its state; the next call starts another.
"""

from __future__ import annotations

import json
import linecache
import os
import select
import socket
import sys
import time
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from envs.sandbox import child
from envs.sandbox.messages import receive

if TYPE_CHECKING:
    import mmap

    from envs.sandbox.room import Room

MAX_WORD = 4096
"""Bytes of what the process says at a call's end."""


def await_answer(host: socket.socket, link: socket.socket, ended: int, deadline: float) -> dict[str, Any]:
    """Wait for a call of a session: {"exit": code, "cpu_s": seconds}, or why there is none.

    {"gone": True}: the host has hung up; {"late": True}; {"over": True}: the process has ended, said no word
    that it should, or was told to end.
    """
    poll = select.poll()
    for source in (link, host, ended):
        poll.register(source, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return {"late": True}
        ready = {descriptor for descriptor, _ in poll.poll(min(left, 0.2) * 1000)}
        if link.fileno() in ready:
            return _word(link)
        if ended in ready:
            return {"over": True}
        if host.fileno() in ready:
            order, descriptors = receive(host)
            for descriptor in descriptors:
                os.close(descriptor)
            return {"gone": True} if order is None else {"over": True}


def _word(link: socket.socket) -> dict[str, Any]:
    try:
        match json.loads(link.recv(MAX_WORD)):
            case {"exit": int(code), "cpu_s": float(seconds)} if 0 <= code <= 255 and 0 <= seconds < 1e9:
                return {"exit": code, "cpu_s": seconds}
    except (ValueError, RecursionError, OSError):
        pass
    return {"over": True}


def serve_session(
    link: socket.socket, message: dict[str, Any], descriptors: Sequence[int], room: Room, fault: mmap.mmap
) -> NoReturn:
    """In the session's process: run one call after the other, as they come."""
    nowhere = os.dup(0)
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = main
    os.write(child.BEGINS, b"1")
    os.close(child.BEGINS)
    number = 0
    while True:
        number += 1
        _put_in_place(message["fds"], descriptors, nowhere)
        code = child.payload(message)
        _detach((child.PAYLOAD,))
        started = time.process_time()
        exit_code = _run(code, f"{room.temp}/call_{number}.py", main, fault)
        for file in (sys.stdout, sys.stderr):
            try:
                file.flush()
            except (OSError, ValueError):  # the program closed it
                exit_code = exit_code or 120
        _detach((child.RESULT,))
        for place in (0, 1, 2):  # its pipes end here
            os.dup2(nowhere, place)
        link.send(json.dumps({"exit": exit_code, "cpu_s": time.process_time() - started}).encode())
        following, descriptors = receive(link)
        if following is None:
            os._exit(0)
        message = following


def _run(code: str, script: str, main: types.ModuleType, fault: mmap.mmap) -> int:
    linecache.cache[script] = (len(code), None, code.splitlines(keepends=True), script)
    try:
        exec(compile(code, script, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        os._exit(child.finish(child.exit_code_of(error)))
    except BaseException as error:
        return child.report(error, fault)
    return 0


def _put_in_place(places: Sequence[int], descriptors: Sequence[int], nowhere: int) -> None:
    for place, descriptor in zip(places, descriptors, strict=True):
        os.dup2(descriptor, place)
        os.close(descriptor)
    for place in {0, 1, 2}.difference(places):
        os.dup2(nowhere, place)


def _detach(places: Sequence[int]) -> None:
    for place in places:
        os.closerange(place, place + 1)
