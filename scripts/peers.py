"""Bring up environments of other libraries: .venv-peers with verl, .venv-trl with TRL.

    python -m scripts.peers [peers] [trl]

Each sees the packages of the environment that makes it, and has besides what its file in requirements/ pins:
these libraries ask for other releases of our stack, so they have no place in .venv. The tests run verl's
rewards in .venv-peers (`--reward-python .venv-peers/bin/python`); scripts/bench.py runs TRL in .venv-trl, on
the same torch as ours. Where one is complete nothing is done; 2.4 MB and 14 MB are fetched, wheels only.
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
from dataclasses import dataclass
from pathlib import Path

from scripts._venv import OFFLINE, Offline, Stop

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 240.0
"""For all of it, waiting for another that does the same included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerVenv:
    """A virtual environment beside .venv, and the file that pins what it has besides .venv's packages."""

    folder: Path
    pins: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Of what it was made; written last."""
        return self.folder / "complete"


PEERS = PeerVenv(folder=ROOT / ".venv-peers", pins=ROOT / "requirements" / "peers.txt")
TRL = PeerVenv(folder=ROOT / ".venv-trl", pins=ROOT / "requirements" / "trl.txt")
VENVS = {"peers": PEERS, "trl": TRL}
PYTHON = PEERS.python

FETCH = (
    *("install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--require-hashes"),
    *("--only-binary=:all:", "--ignore-installed", "--retries=2", "--timeout=20"),
)


def main() -> int:
    names = sys.argv[1:]
    if unknown := set(names) - VENVS.keys():
        print(__doc__)
        return 0 if unknown <= {"-h", "--help"} else 2
    for venv in [VENVS[name] for name in names] or [PEERS]:
        started = time.monotonic()
        try:
            done = bring_up(venv)
        except Stop as stop:
            print(f"peers: {stop}", file=sys.stderr)
            return 1
        told = f"ready in {time.monotonic() - started:.0f} s" if done else "is complete"
        print(f"peers: {venv.folder} {told}")
    return 0


def bring_up(venv: PeerVenv = PEERS) -> bool:
    """Make the environment hold what is pinned; whether anything was to be done.

    Raises:
        Offline: the package index was not reached.
        Stop: it cannot be made for another reason.
    """
    ends = time.monotonic() + DEADLINE_S
    # Where the packages lie that it sees, and for which Python.
    beside = sysconfig.get_path("purelib")
    key = hashlib.sha256("\0".join([venv.pins.read_text(), beside, sys.version]).encode()).hexdigest()
    with _alone(venv, ends):
        if venv.stamp.is_file() and venv.stamp.read_text() == key and venv.python.exists():
            return False
        if venv.folder.exists():
            shutil.rmtree(venv.folder)
        _run(["-m", "venv", "--without-pip", str(venv.folder)], ends)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (venv.folder / "lib" / version / "site-packages" / "beside.pth").write_text(f"{beside}\n")
        _run(["-m", "pip", "--python", str(venv.python), *FETCH, "--requirement", str(venv.pins)], ends)
        venv.stamp.write_text(key)
    return True


@contextmanager
def _alone(venv: PeerVenv, ends: float) -> Iterator[None]:
    """One process at a time in this folder."""
    with venv.folder.with_suffix(".lock").open("w") as lock:
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
