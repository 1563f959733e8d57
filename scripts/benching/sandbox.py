"""M9: what isolation costs, against the same interpreter without any, in turns on the same machine.

A round runs each of the ways once, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.choosing import choose, describe
from envs.sandbox.usage import descendants
from scripts.benching.report import Figure, Measurement, percentile, ratio_text

PROGRAM = "print(sum(range(100)))"
EXPECTED = "4950\n"
WARM_UPS = 3
AT_ONCE = 8
SETTLING = 10
CALL_MS, ONE_SHOT_RATIO, THROUGHPUT_SHARE = 2.0, 1.5, 0.7


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="auto", help="sandbox: which one to measure")
    parser.add_argument("--sandbox-rounds", type=int, default=100, help="sandbox: rounds of the latencies")
    parser.add_argument(
        "--sandbox-cycles", type=int, default=10_000, help="sandbox: opened before leaks are counted"
    )


def measure(options: argparse.Namespace) -> list[Measurement]:
    return [asyncio.run(_measure(options))]


async def _measure(options: argparse.Namespace) -> Measurement:
    probe = await choose(options.backend)
    name = f"sandbox: M9, {describe(probe)}; {PROGRAM!r} on {os.cpu_count()} cores"
    if problem := await _gate(probe.backend):
        return Measurement(subject=name, figures=(), void=problem)
    figures = await _latencies(probe.backend, options.sandbox_rounds)
    figures += await _throughputs(probe.backend)
    figures += await _leaks(probe.backend, options.sandbox_cycles)
    return Measurement(subject=name, figures=figures)


async def _gate(backend: str) -> str:
    """What is wrong with the isolation; "" for nothing: the speed of an open door counts for nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".secret") as file:
        file.write("canary")
        file.flush()
        os.chmod(file.name, 0o644)
        attempts = {
            "reads a file of the host": f"print(open({file.name!r}).read())",
            "sees the environment": "import os; print(os.environ['WHETSTONE_CANARY'])",
            "reaches a network": "import socket; socket.create_connection(('1.1.1.1', 53)); print('canary')",
            "is root": "import os; print('canary' if os.getuid() == 0 else '')",
        }
        os.environ["WHETSTONE_CANARY"] = "canary"
        async with Sandbox.open(Limits(wall_s=5), backend=backend) as box:
            for what, code in attempts.items():
                if "canary" in (await box.python(code)).stdout:
                    return f"a program in it {what}"
    return ""


async def _latencies(backend: str, rounds: int) -> list[Figure]:
    async with Sandbox.open(Limits(), backend=backend) as box:
        seconds = await _in_turns(
            {
                "plain": _plain,
                "one-shot": lambda: _one_shot(backend),
                "call": lambda: _call(box),
            },
            rounds,
        )
    plain, one_shot, call = (seconds[name] for name in ("plain", "one-shot", "call"))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    late = {name: percentile(values, 0.99) for name, values in seconds.items()}
    return [
        Figure(
            name="plain python -I, p50", value=1e3 * middle["plain"], unit="ms", detail=_p99(late["plain"])
        ),
        Figure(
            name="one-shot sandbox (open, run, close), p50",
            value=1e3 * middle["one-shot"],
            unit="ms",
            detail=_p99(late["one-shot"]),
        ),
        Figure(
            name="one-shot / plain, p50",
            value=middle["one-shot"] / middle["plain"],
            unit="x",
            target=ONE_SHOT_RATIO,
            detail=ratio_text(one_shot, plain),
        ),
        Figure(
            name="call in an open sandbox, p50",
            value=1e3 * middle["call"],
            unit="ms",
            target=CALL_MS,
            detail=f"{_p99(late['call'])}, fastest {1e3 * min(call):.2f}",
        ),
        Figure(
            name="call / plain, p50",
            value=middle["call"] / middle["plain"],
            unit="x",
            detail=ratio_text(call, plain),
        ),
    ]


def _p99(seconds: float) -> str:
    return f"p99 {1e3 * seconds:.1f} ms"


async def _in_turns(ways: dict[str, Callable[[], Awaitable[None]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after some rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UPS + rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            await way()
            if number >= WARM_UPS:
                seconds[name].append(time.perf_counter() - started)
    return seconds


async def _plain() -> None:
    """The same interpreter in a process of its own, waited for as cheaply as that goes."""
    done = subprocess.run([sys.executable, "-I", "-c", PROGRAM], capture_output=True, text=True, check=True)  # noqa: ASYNC221
    _require(done.stdout)


async def _plain_beside() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", PROGRAM, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    _require(output.decode())


async def _one_shot(backend: str) -> None:
    async with Sandbox.open(Limits(), backend=backend) as box:
        await _call(box)


async def _call(box: Sandbox) -> None:
    _require((await box.python(PROGRAM)).stdout)


def _require(output: str) -> None:
    if output != EXPECTED:
        raise RuntimeError(f"the program printed {output!r}, expected {EXPECTED!r}")


async def _throughputs(backend: str) -> list[Figure]:
    """Programs a second, eight at once, both ways in turns."""
    plain: list[float] = []
    isolated: list[float] = []
    for _ in range(5):
        plain.append(await _per_second(_plain_beside))
        isolated.append(await _per_second(lambda: _one_shot(backend)))
    share = statistics.median(isolated) / statistics.median(plain)
    return [
        Figure(name=f"plain python -I, {AT_ONCE} at once", value=statistics.median(plain), unit="/s"),
        Figure(name=f"one-shot sandboxes, {AT_ONCE} at once", value=statistics.median(isolated), unit="/s"),
        Figure(
            name="sandboxes / plain, programs a second",
            value=share,
            unit="x",
            target=THROUGHPUT_SHARE,
            is_floor=True,
            detail=ratio_text(isolated, plain),
        ),
    ]


async def _per_second(run: Callable[[], Awaitable[None]], number: int = 160) -> float:
    left = iter(range(number))

    async def worker() -> None:
        for _ in left:
            await run()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return number / (time.perf_counter() - started)


async def _leaks(backend: str, cycles: int) -> list[Figure]:
    """What is there after so many sandboxes that was not there before."""
    await _per_second(lambda: _one_shot(backend))  # what is made once is there before the first count
    before = _inventory()
    started = time.perf_counter()
    await _per_second(lambda: _one_shot(backend), cycles)
    seconds = time.perf_counter() - started
    more: dict[str, int] = {}
    for _ in range(SETTLING):  # a leak stays; the last sandboxes take a moment to be gone
        after = _inventory()
        more = {what: after[what] - before[what] for what in before if after[what] > before[what]}
        if not more:
            break
        await asyncio.sleep(0.2)
    return [
        Figure(
            name=f"leaked by {cycles:,} sandboxes",
            value=sum(more.values()),
            target=0,
            detail=f"{', '.join(f'{count} {what}' for what, count in more.items())} {seconds:.0f} s".strip(),
        )
    ]


def _inventory() -> dict[str, int]:
    """Processes, mounts, folders and descriptors of this process and of those below it."""
    ours = [os.getpid(), *descendants(os.getpid())]
    folders = [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("whetstone-box-")]
    return {
        "processes": len(ours),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "folders": sum(name.split("-")[3] in map(str, ours) for name in folders),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in ours),
    }
