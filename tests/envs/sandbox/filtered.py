"""Run a command as a default container does: without the calls that make namespaces and mounts.

python -m tests.envs.sandbox.filtered COMMAND ...
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from envs.sandbox import syscalls
from envs.sandbox.syscalls import CLONE_NEW_ANY

_LOAD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_MOUNT, _UMOUNT, _PIVOT, _UNSHARE, _SETNS, _CLONE, _CLONE3 = 165, 166, 155, 272, 308, 56, 435  # x86-64
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def program() -> bytes:
    steps = [(_LOAD, 0, 0, 0)]
    for number in (_MOUNT, _UMOUNT, _PIVOT, _UNSHARE, _SETNS):
        steps += [(_JEQ, 0, 1, number), (_RET, 0, 0, _REFUSE)]
    steps += [(_JEQ, 0, 1, _CLONE3), (_RET, 0, 0, _UNKNOWN), (_JEQ, 0, 3, _CLONE), (_LOAD, 0, 0, 16)]
    steps += [(_JSET, 0, 1, CLONE_NEW_ANY), (_RET, 0, 0, _REFUSE), (_RET, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


if __name__ == "__main__":
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.install_seccomp(program())
    os.execv(sys.argv[1], sys.argv[1:])
