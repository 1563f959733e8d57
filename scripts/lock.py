"""Renew requirements/cpu.lock and requirements/gpu.lock from pyproject.toml (`make lock`).

What is locked stays as it is unless pyproject.toml forbids it; `--upgrade` takes the newest of everything.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PYTHONS: Final = ("3.11", "3.12")  # the first makes the lock, the others are checked against it
TORCH_CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"

# PyPI has these for CUDA only, and beside torch+cpu they break `import peft` and transformers' models.
CUDA_ONLY: Final = ("torchaudio", "torchcodec", "torchvision", "triton")

# GiB free that an install needs: the environment, the wheels while they are unpacked and pip's cache of them.
# cpu was measured, gpu is estimated.
NEEDS_GIB: Final = {"cpu": 6, "gpu": 24}

HEADER: Final = """\
# Made from pyproject.toml (extras {device}, dev) by scripts/lock.py: `make lock`. Do not edit.
# Complete for Linux x86_64 with Python {pythons}; install with --no-deps, as scripts/install.py does.
# No hashes: torch+cpu is not on PyPI, so which file it is depends on the configured index.
# needs-gib: {gib}
"""


class LockError(Exception):
    """The locks cannot be renewed; the message says why and what to do."""


def main() -> int:
    """Renew both locks, or neither; 1 when they cannot be resolved."""
    parser = argparse.ArgumentParser(description="Renew the locks in requirements/ from pyproject.toml.")
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest release that pyproject.toml allows"
    )
    args = parser.parse_args()
    try:
        uv = find_uv()
        locks = {device: resolve(uv, device, upgrade=args.upgrade) for device in NEEDS_GIB}
    except LockError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 1
    for device, text in locks.items():
        path = ROOT / "requirements" / f"{device}.lock"
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)
        print(f"lock: {path.relative_to(ROOT)}: {len(pins(text))} packages")
    return 0


def find_uv() -> str:
    """uv from the environment this runs in (extra `dev`), else from PATH."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise LockError("uv is not installed; run `make lock`, which brings it, or `pip install uv`")
    return uv


def resolve(uv: str, device: str, *, upgrade: bool) -> str:
    """The text of one lock, resolved for the first of PYTHONS and checked for the others."""
    command = [uv, "pip", "compile", "pyproject.toml", f"--extra={device}", "--extra=dev", "--quiet"]
    command += [
        "--no-header",
        "--annotation-style=line",
        "--index-strategy=unsafe-best-match",
        *pip_sources(),
    ]
    if device == "cpu":
        command += [f"--no-emit-package={name}" for name in CUDA_ONLY]
    with tempfile.TemporaryDirectory() as folder:
        lock, check = Path(folder, "lock"), Path(folder, "check")
        current = ROOT / "requirements" / f"{device}.lock"
        if current.exists() and not upgrade:
            shutil.copy(current, lock)  # uv keeps what its output file holds, where it can
        first, *others = PYTHONS
        body = compile_lock([*command, f"--python-version={first}"], lock, device)
        for python in others:
            try:
                other = compile_lock(
                    [*command, f"--python-version={python}", f"--constraint={lock}"], check, device
                )
            except LockError as error:
                # The configured sources may have no torch+cpu for this Python.
                print(f"lock: not checked for Python {python}: {error}", file=sys.stderr)
                continue
            if differ := sorted(pins(other) ^ pins(body)):
                raise LockError(f"{device}: Python {first} and {python} need different {', '.join(differ)}")
    return HEADER.format(device=device, pythons=" and ".join(PYTHONS), gib=NEEDS_GIB[device]) + body


def compile_lock(command: list[str], output: Path, device: str) -> str:
    """uv's resolution from the configured sources; when they fail, for the CPU, with PyTorch's index too."""
    attempts = [[], [f"--extra-index-url={TORCH_CPU_INDEX}"]] if device == "cpu" else [[]]
    errors = []
    for extra in attempts:
        done = subprocess.run(
            [*command, f"--output-file={output}", *extra],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return output.read_text()
        errors.append(" ".join(done.stderr.split()))
    raise LockError(f"{device}: uv: {' / '.join(errors)}")


def pins(text: str) -> set[str]:
    """The `name==version` of every line that has one."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in lines if line}


def pip_sources() -> list[str]:
    """pip's configured indexes and find-links as uv's options: uv reads neither pip.conf nor PIP_*."""
    options = {
        "index-url": "--default-index",
        "extra-index-url": "--extra-index-url",
        "find-links": "--find-links",
    }
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found = []
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        option = options.get(key.rpartition(".")[2])
        if option:
            found += [f"{option}={part}" for text in shlex.split(value) for part in text.split()]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.exit(main())
