"""What every attack program begins with: the runner puts this text in front of it."""

import ctypes
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
first_process = os.getppid()


def escaped(what):
    print(f"ESCAPED: {what}", flush=True)


def forbidden(what, function, *arguments, **options):
    """`function` must raise."""
    try:
        result = function(*arguments, **options)
    except (OSError, ValueError, AttributeError, ImportError, OverflowError) as error:
        return error
    escaped(f"{what}: {result!r}")
    return None


def call(number, *arguments):
    """A system call by its number: the result, or minus the error number."""
    if os.uname().machine != "x86_64":
        sys.exit(0)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 else result


def refused(what, number, *arguments):
    """A system call must fail as one that is not allowed or does not exist, whatever its arguments."""
    result = call(number, *arguments)
    if result not in (-1, -13, -38, -97):  # EPERM, EACCES, ENOSYS, EAFNOSUPPORT
        escaped(f"{what}: {result}")


def in_child(function, *arguments):
    """The wait status of `function` run in a process of its own: it may crash."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]
