"""Run one Python file in a sandbox: its output, bounded, and its exit code pass through.

    python -m scripts.sandbox_exec [--backend ns] [--min-level 3] [--wall-s 5] [--workdir FOLDER] FILE

Exit codes: the program's own; 128 + n where signal n ended it; 124 wall time; 137 memory; 125 the sandbox
itself (nothing is known of the program), or a level that this machine cannot give.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError, SandboxTooWeakError
from envs.sandbox.blocking import run_blocking
from envs.sandbox.choosing import ALLOW_WEAK, WEAK, choose, describe

TIMEOUT, SANDBOX_ERROR, MEMORY = 124, 125, 137
MAX_INPUT_MB = 100


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        limits = Limits(
            wall_s=options.wall_s,
            mem_mb=options.mem_mb,
            procs=options.procs,
            disk_mb=options.disk_mb,
            output_kb=options.output_kb,
        )
        code = _read(Path(options.file)).decode(errors="surrogateescape")
        files = dict(_files_of(Path(options.workdir))) if options.workdir else {}
        stdin = (
            b"" if sys.stdin is None or sys.stdin.isatty() or not options.stdin else sys.stdin.buffer.read()
        )
        result = run_blocking(_run(code, files, stdin, limits, options))
    except (ValueError, OSError, SandboxError, SandboxTooWeakError) as error:
        print(f"sandbox_exec: {error}", file=sys.stderr)
        return SANDBOX_ERROR
    _pass_through(result)
    return _exit_code(result)


async def _run(
    code: str, files: dict[str, bytes], stdin: bytes, limits: Limits, options: argparse.Namespace
) -> ExecResult:
    probe = await choose(options.backend, options.min_level, allow_weak=options.allow_weak)
    if options.allow_weak and probe.level >= WEAK:
        raise ValueError(f"--allow-weak has no effect: {probe.backend} is level {probe.level}; leave it out")
    if options.verbose:
        print(describe(probe), file=sys.stderr)
    opening = Sandbox.open(
        limits,
        files=files,
        backend=probe.backend,
        min_level=options.min_level,
        allow_weak=options.allow_weak,
    )
    async with opening as box:
        return await box.python(code, stdin=stdin)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.sandbox_exec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Limits()
    parser.add_argument("file", metavar="FILE", help="a Python program; `-` reads it from standard input")
    parser.add_argument(
        "--backend", default="auto", help="auto, ns, bwrap, landlock, rlimits, or a registered one"
    )
    parser.add_argument(
        "--min-level", type=int, help="refuse anything weaker (default 2; 1 with both consents)"
    )
    parser.add_argument("--wall-s", type=float, default=defaults.wall_s, help="seconds of wall time")
    parser.add_argument(
        "--mem-mb", type=int, default=defaults.mem_mb, help="MiB of all its processes together"
    )
    parser.add_argument("--procs", type=int, default=defaults.procs, help="processes and threads at once")
    parser.add_argument("--disk-mb", type=int, default=defaults.disk_mb, help="MiB of all that it writes")
    parser.add_argument("--output-kb", type=int, default=1024, help="KiB kept of each of its two outputs")
    parser.add_argument(
        "--workdir", help="a folder whose files it starts with; the folder itself stays as it is"
    )
    parser.add_argument("--stdin", action="store_true", help="give it what comes on standard input")
    parser.add_argument(
        "--allow-weak", action="store_true", help=f"one half of the consent to level 1 ({ALLOW_WEAK}=1)"
    )
    parser.add_argument("--verbose", action="store_true", help="say which sandbox it is")
    return parser


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    return path.read_bytes()


def _files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Regular files below `folder`, by their path in it; links are not followed."""
    if not folder.is_dir():
        raise ValueError(f"--workdir {str(folder)!r} is no folder")
    num_bytes = 0
    for path, _, names in os.walk(folder):
        for name in sorted(names):
            file = Path(path, name)
            if not stat.S_ISREG(file.lstat().st_mode):
                continue
            data = file.read_bytes()
            num_bytes += len(data)
            if num_bytes > MAX_INPUT_MB << 20:
                raise ValueError(f"--workdir {str(folder)!r} holds more than {MAX_INPUT_MB} MiB")
            yield str(file.relative_to(folder)), data


def _pass_through(result: ExecResult) -> None:
    sys.stdout.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.write(result.stderr)
    if result.truncated:
        print("\nsandbox_exec: output was cut (--output-kb)", file=sys.stderr)
    if result.status not in ("ok", "nonzero", "signal"):
        print(f"sandbox_exec: {result.status} after {result.wall_s:.2f} s", file=sys.stderr)
    sys.stderr.flush()


def _exit_code(result: ExecResult) -> int:
    if result.status == "timeout":
        return TIMEOUT
    if result.status == "oom":
        return MEMORY
    if result.signal is not None:
        return 128 + result.signal
    return result.exit_code or 0


if __name__ == "__main__":
    sys.exit(main())
