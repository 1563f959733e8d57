"""What a call's process does: a Python program, another program, or a file to read or to write."""

from __future__ import annotations

import atexit
import errno
import io
import json
import linecache
import mmap
import os
import random
import signal
import stat
import sys
import threading
import traceback
import types
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from envs.sandbox.room import Room

NOT_STARTED = 254
"""Exit code of a call that could not even begin. A program may end with it too: `BEGINS` tells which."""

FILE_PROBLEM = 253
"""Exit code of reading or writing a file that cannot be: stderr says why."""

PAYLOAD = 4
"""Where a call finds the descriptor of its payload (source text, or a file's content)."""

RESULT = 3
"""Where a program finds the descriptor of its private result."""

BEGINS = 5
"""Where a call says, once and for ever, that the rest is the program's own doing."""

SCRIPT = "main.py"


def run(message: dict[str, Any], room: Room, fault: mmap.mmap) -> NoReturn:
    """Run the call of `message`; does not return."""
    os.write(BEGINS, b"1")
    os.close(BEGINS)
    match message["kind"]:
        case "python":
            run_python(payload(message), room, fault)
        case "exec":
            run_program(message["argv"] if "argv" in message else json.loads(payload(message)), room)
        case "read":
            _as_file_work(lambda: read_file(message["path"], message["max_bytes"]))
        case "write":
            _as_file_work(lambda: write_files(message["header"]))
    os._exit(NOT_STARTED)


def payload(message: dict[str, Any]) -> str:
    if "code" in message:
        return message["code"]
    with os.fdopen(PAYLOAD, "rb") as file:
        file.seek(0)
        return file.read().decode(errors="surrogatepass")


def get_ready(room: Room) -> None:
    """What a Python program needs and does not depend on it; then once through what all of them go through.

    A page of memory is copied when it is first written to, and running Python writes to most: that is done
    here, while the process waits for its call.
    """
    sys.path[:] = [room.home, *room.paths]
    random.seed(room.seed)
    try:
        exec(compile("raise SystemExit", f"{room.temp}/{SCRIPT}", "exec", dont_inherit=True), {})
    except SystemExit as error:
        exit_code_of(error)
    for file in (sys.stdout, sys.stderr):
        file.flush()


def run_python(code: str, room: Room, fault: mmap.mmap) -> NoReturn:
    """`code` as the script that an interpreter was started with, without starting one."""
    script = f"{room.temp}/{SCRIPT}"
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = main
    linecache.cache[script] = (len(code), None, code.splitlines(keepends=True), script)
    exit_code = 0
    try:
        exec(compile(code, script, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        exit_code = exit_code_of(error)
    except BaseException as error:
        exit_code = report(error, fault)
    os._exit(finish(exit_code))


def make_fresh(room: Room) -> None:
    """An interpreter as it is when it has just started; nothing of ours can be imported or found by name.

    Done once, in the first process: every call is a copy of it.
    """
    for name in [name for name in sys.modules if name == "envs" or name.startswith("envs.")]:
        del sys.modules[name]
    sys.path.clear()  # the first process imports nothing any more, least of all from where programs write
    sys.argv[:] = [f"{room.temp}/{SCRIPT}"]
    sys.orig_argv[:] = [room.executable, *sys.argv]
    sys.executable = room.executable
    sys.path_importer_cache.clear()
    os.environ.clear()
    os.environ.update(room.env)
    os.umask(0o022)
    os.chdir(room.home)
    _make_standard_files()


def _make_standard_files() -> None:
    """sys.stdin, stdout and stderr on descriptors 0 to 2, whatever these lead to when they are used.

    Made on a pipe, as they are in a call: a file asks its descriptor once whether it can be sought in.
    """
    reader, writer = os.pipe()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    raw = io.BufferedReader(io.FileIO(0, "r", closefd=False))
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")
    sys.stdout = sys.__stdout__ = _text_file(1, "strict")
    sys.stderr = sys.__stderr__ = _text_file(2, "backslashreplace")
    for place, descriptor in zip((1, 2), saved, strict=True):
        os.dup2(descriptor, place)
    for descriptor in (reader, writer, *saved):
        os.close(descriptor)


def _text_file(descriptor: int, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=descriptor == 2
    )


def exit_code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def report(error: BaseException, fault: mmap.mmap) -> int:
    """What an interpreter does with an exception that nobody caught; returns its exit code."""
    if isinstance(error, MemoryError):
        fault[0] = 1
    frames = error.__traceback__
    own = frames.tb_next if frames is not None else None  # without ours, which comes first
    try:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, own)
        else:
            sys.excepthook(type(error), error, own)
    except BaseException:
        return 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def finish(exit_code: int) -> int:
    """Join the threads, run what was left for the exit, flush: as an interpreter ends."""
    for work in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            work()
        except SystemExit as error:
            exit_code = exit_code_of(error)
        except BaseException:
            traceback.print_exc()
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except BaseException:
            exit_code = exit_code or 120  # as an interpreter does that cannot flush
    return exit_code


def run_program(argv: list[str], room: Room) -> NoReturn:
    """Another program, in this process's place."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, room.env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(126 if error.errno == errno.EACCES else 127)


def _as_file_work(work: Any) -> NoReturn:
    try:
        work()
    except OSError as error:
        os.write(2, (error.strerror or str(error)).encode())
        os._exit(FILE_PROBLEM)
    os._exit(0)


def read_file(path: str, max_bytes: int) -> None:
    """A regular file's bytes to stdout. A link, a fifo or a device is refused and never waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if facts.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"{facts.st_size} bytes, more than the {max_bytes} that may be read")
    while data := os.read(descriptor, 1 << 16):
        _write_all(1, data)


def write_files(num_header: int) -> None:
    """The payload begins with (path, size) of each, in so many bytes of JSON; then their contents follow."""
    os.lseek(PAYLOAD, 0, os.SEEK_SET)
    header = b""
    while len(header) < num_header:
        header += os.read(PAYLOAD, num_header - len(header))
    for path, size in json.loads(header):
        folder = os.path.dirname(path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        target = os.open(path, flags, 0o644)
        if not stat.S_ISREG(os.fstat(target).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        while size:
            data = os.read(PAYLOAD, min(size, 1 << 16))
            if not data:
                raise OSError(errno.EIO, "the content is shorter than it was said to be")
            _write_all(target, data)
            size -= len(data)
        os.close(target)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
