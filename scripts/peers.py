"""Bring up .venv-peers: libraries whose reward functions we promise to run unmodified, for the tests that do.

    python -m scripts.peers

It sees the packages of the environment that makes it, and has besides what requirements/peers.txt pins: verl
asks for other releases of our stack, so it has no place in .venv. A reward runs there with `--reward-python
.venv-peers/bin/python`. Where it is complete nothing is done; 2.4 MB are fetched, wheels only.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts._venv import OFFLINE, Offline, Stop

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers"
PYTHON = PEERS / "bin" / "python"
PINS = ROOT / "requirements" / "peers.txt"
STAMP = PEERS / "complete"  # of what it was made; written last

DEADLINE_S = 240.0
"""For all of it, waiting for another that does the same included."""

FETCH = (
    *("install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--require-hashes"),
    *("--only-binary=:all:", "--retries=2", "--timeout=20"),
)


def main() -> int:
    if sys.argv[1:]:
        print(__doc__)
        return 0 if {"-h", "--help"} & set(sys.argv[1:]) else 2
    started = time.monotonic()
    try:
        done = bring_up()
    except Stop as stop:
        print(f"peers: {stop}", file=sys.stderr)
        return 1
    print(f"peers: {PEERS} {f'ready in {time.monotonic() - started:.0f} s' if done else 'is complete'}")
    return 0


def bring_up() -> bool:
    """Make .venv-peers hold what is pinned; whether anything was to be done.

    Raises:
        Offline: the package index was not reached.
        Stop: it cannot be made for another reason.
    """
    ends = time.monotonic() + DEADLINE_S
    # Where the packages lie that it sees, and for which Python.
    beside = sysconfig.get_path("purelib")
    key = hashlib.sha256("\0".join([PINS.read_text(), beside, sys.version]).encode()).hexdigest()
    with _alone(ends):
        if STAMP.is_file() and STAMP.read_text() == key and PYTHON.exists():
            return False
        if PEERS.exists():
            shutil.rmtree(PEERS)
        _run(["-m", "venv", "--without-pip", str(PEERS)], ends)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (PEERS / "lib" / version / "site-packages" / "beside.pth").write_text(f"{beside}\n")
        _run(["-m", "pip", "--python", str(PYTHON), *FETCH, "--requirement", str(PINS)], ends)
        STAMP.write_text(key)
    return True


@contextmanager
def _alone(ends: float) -> Iterator[None]:
    """One process at a time in this folder."""
    with (ROOT / ".venv-peers.lock").open("w") as lock:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > ends:
                raise Stop(
                    f"another process held {lock.name} for {DEADLINE_S:g} s; end it, then run this again"
                )
            time.sleep(0.1)
        yield


def _run(arguments: list[str], ends: float) -> None:
    """Run this Python with `arguments`; its failure becomes a Stop with what it said."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(1.0, ends - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Stop(f"not done after {DEADLINE_S:g} s, at {arguments[1]}; run it again") from None
    if done.returncode and OFFLINE.search(done.stdout):
        raise Offline(
            "no network: pip cannot reach its index; connect or set PIP_INDEX_URL, then run it again"
        )
    if done.returncode:
        raise Stop(f"{arguments[1]} failed with exit status {done.returncode}:\n{done.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main())
