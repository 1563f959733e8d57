"""Run the attack programs through one backend, with things planted that they must not get; print verdicts.

    python -m tests.envs.sandbox.attack_run --backend ns [--landlock-abi 5] [--only NAME ...]

A process of its own, so that it can be an ordinary user's, and so that what it leaks is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError, SandboxFileError
from envs.sandbox.choosing import BUILT_IN
from envs.sandbox.policy import SandboxPolicy, use_policy
from tests.envs.sandbox import traces
from tests.envs.sandbox.openings import old_landlock, open_sandbox
from tests.envs.sandbox.plants import Plants

ATTACKS = Path(__file__).parent / "attacks"
AT_ONCE = 4
DEADLINE_S = 40.0
_DESTRUCTIVE = {"own_folder_gone", "mode_000"}
"""After these not even a harmless program can run in the same sandbox; that is not the world's fault."""


def names() -> list[str]:
    return sorted(path.stem for path in ATTACKS.glob("*.py") if path.stem != "prelude")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A program, and what its comment `# name=value ...` says of how to run it.

    Limits by their names; `status` those that the call may end with (with `|`); `read` a file that the host
    then reads; `again` that two sandboxes run it at once; `not` a backend that says it cannot.
    """

    name: str
    code: str
    options: dict[str, str]

    def limits(self) -> Limits:
        given = {name: value for name, value in self.options.items() if name in Limits.__dataclass_fields__}
        numbers = {
            name: float(text) if name in ("wall_s", "cpu_s") else int(text) for name, text in given.items()
        }
        return Limits(**{"wall_s": 5.0, "mem_mb": 256, **numbers})  # type: ignore[arg-type]

    def allowed(self) -> set[str]:
        return set(self.options.get("status", "ok").split("|"))


def load(name: str, plants: Plants) -> Attack:
    text = (ATTACKS / f"{name}.py").read_text()
    found = re.search(r"^# ((?:\w+=\S+ ?)+)$", text, re.M)
    options = dict(word.split("=", 1) for word in found[1].split()) if found else {}
    code = plants.fill((ATTACKS / "prelude.py").read_text() + "\n\n" + text)
    return Attack(name=name, code=code, options={key: plants.fill(value) for key, value in options.items()})


def problems_of(attack: Attack, result: ExecResult, plants: Plants) -> list[str]:
    """What the program got, by its own word or by what came out."""
    output = result.stdout + result.stderr
    found = [line for line in output.splitlines() if line.startswith("ESCAPED")]
    if any(secret in output for secret in plants.secrets):
        found.append("a secret came out")
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", output):
        found.append("control characters came out as they are")
    if len(result.stdout.encode()) > 4 * (attack.limits().output_kb << 10):  # an escape is four bytes
        found.append(f"{len(result.stdout)} characters of output were kept")
    if result.status not in attack.allowed():
        found.append(f"ended with {result.status} {result.exit_code}: {result.stderr[-500:]}")
    if result.wall_s > attack.limits().wall_s + 2:
        found.append(f"took {result.wall_s:.1f} s")
    return found


async def carry_out(attack: Attack, plants: Plants, backend: str, abi: int) -> list[str]:
    """The problems of one attack; [] where it was contained."""
    found: list[str] = []
    try:
        async with asyncio.timeout(DEADLINE_S), open_sandbox(backend, attack.limits(), abi=abi) as box:
            found += problems_of(attack, await box.python(attack.code, stdin=b"x" * 1000), plants)
            if path := attack.options.get("read"):
                found += await _read(box, path, plants)
            after = await box.python("print('alive')")
            if after.stdout != "alive\n" and attack.name not in _DESTRUCTIVE:
                found.append(f"the next call ended with {after.status}: {after.stderr[-300:]}")
    except SandboxError as error:
        found.append(f"made its failure the world's: {error}")
    except TimeoutError:
        found.append(f"the sandbox did not end within {DEADLINE_S:g} s")
    return found


async def _read(box: Sandbox, path: str, plants: Plants) -> list[str]:
    started = time.monotonic()
    try:
        data = await box.read_file(path)
    except SandboxFileError as error:
        slow = time.monotonic() - started > 2
        return [f"reading it took long: {error}"] if slow else []
    return [f"the host read {data[:60]!r}"]


async def run_all(chosen: list[str], plants: Plants, backend: str, abi: int) -> list[dict[str, Any]]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def run(name: str) -> dict[str, Any]:
        attack = load(name, plants)
        copies = 2 if attack.options.get("again") else 1
        async with turn:
            started = time.monotonic()
            several = await asyncio.gather(*(carry_out(attack, plants, backend, abi) for _ in range(copies)))
        problems = [problem for found in several for problem in found]
        return {"name": name, "problems": problems, "wall_s": round(time.monotonic() - started, 2)}

    return await asyncio.gather(*map(run, chosen))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", required=True)
    parser.add_argument("--landlock-abi", type=int, default=0)
    parser.add_argument("--weak", action="store_true", help="for rlimits: one half of the consent")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--argv-secret", required=True)
    options = parser.parse_args()
    use_policy(SandboxPolicy(backend=options.backend, allow_weak=options.weak))
    with Plants(options.argv_secret) as plants:
        chosen = [
            name
            for name in options.only or names()
            if load(name, plants).options.get("not") != options.backend
        ]
        verdicts = asyncio.run(run_all(chosen, plants, options.backend, options.landlock_abi))
        left = plants.problems()
        backend = old_landlock(options.landlock_abi) if options.landlock_abi else BUILT_IN[options.backend]
        left += traces.of_launcher(backend.launcher.pid)
    print(json.dumps({"uid": os.getuid(), "verdicts": verdicts, "host": left}))


if __name__ == "__main__":
    sys.exit(main())
