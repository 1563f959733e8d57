"""Grading code by its tests: the sandbox gets inputs, the host keeps what is expected and compares.

A case is one call of the solution's function, in a process and a sandbox of its own, so nothing that one
case leaves behind (a file, a thread, a count) is there in the next. The result is one JSON value on a private
pipe; what is missing, late, or more than that is wrong. Equal values have equal types: True is not 1, and 1
is not 1.0. There is no tolerance for floats, NaN equals nothing, tuples count as lists.
"""

from __future__ import annotations

import asyncio
import json
import keyword
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.sandbox.base import ExecResult, Limits, Sandbox, SandboxError
from envs.sandbox.grading_inside import plain
from envs.sandbox.slots import slot

TOTAL_S = 60.0
"""Seconds that the cases of one solution may run together; what has not begun by then is wrong ("late")."""
NOT_RUN = "not run after a timeout"
LATE = "late"
GRADING_LIMITS = Limits(wall_s=5.0, mem_mb=512, disk_mb=50, output_kb=1)
"""Of one case."""
MAX_RESULT_BYTES = 1 << 20
_INSIDE = Path(__file__).with_name("grading_inside.py").read_text(encoding="utf-8")

_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call and what it must return, both as plain JSON data.

    Example:
        Case(args=[[3, 1, 2]], expected=[1, 2, 3])        # of a function that sorts
    """

    args: list[Any]
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where cases run: the limits of each, and what `Sandbox.open` takes (None: the process's own policy).

    `total_s` bounds what the cases of one solution run together: the sum, waiting for a slot not counted.
    `seed` is that of Python's `random` in every case: an episode's own, where there is one.
    """

    limits: Limits = GRADING_LIMITS
    total_s: float = TOTAL_S
    backend: str | None = None
    min_level: int | None = None
    allow_weak: bool | None = None
    seed: int = 0

    async def run(self, solution: str, entry: str, args: list[Any]) -> ExecResult:
        """One call of `entry` of `solution`, in a new sandbox."""
        request = json.dumps({"solution": solution, "entry": entry, "args": args}).encode()
        opening = Sandbox.open(
            self.limits,
            backend=self.backend,
            min_level=self.min_level,
            allow_weak=self.allow_weak,
            seed=self.seed,
        )
        async with opening as box:
            called = await box.python(_INSIDE, stdin=request, max_result_bytes=MAX_RESULT_BYTES)
        if called.status == "sandbox_error":
            raise SandboxError(f"a case could not be run: {called.stderr[-500:]}")
        return called


DEFAULT_PLACE = Place()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """Whether a case passed, and where it did not, how: "another value", "timeout", "raised TypeError"."""

    passed: bool
    reason: str = ""


def code_in(text: str) -> str:
    """The last fenced block of Python in `text`, or all of it where there is none."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def make_cases(tests: Sequence[Sequence[Any]]) -> list[Case]:
    """Cases of `[[args, expected], ...]`.

    Raises:
        ValueError: there are none, or one is no pair of a list and a value that JSON can say; it is named.
    """
    if not isinstance(tests, list | tuple) or not tests:
        raise ValueError(f"tests are {_shown(tests)}; expected a list of at least one [args, expected]")
    cases = []
    for index, test in enumerate(tests):
        if not isinstance(test, list | tuple) or len(test) != 2 or not isinstance(test[0], list | tuple):
            raise ValueError(f"tests[{index}] is {_shown(test)}; expected [args, expected], args a list")
        try:
            args, expected = plain(test[0]), plain(test[1])
            json.dumps([args, expected], allow_nan=False)
        except ValueError as error:
            raise ValueError(f"tests[{index}] is {_shown(test)}: {error}; expected JSON values") from error
        cases.append(Case(args=args, expected=expected))
    return cases


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except ValueError:  # a whole number of thousands of digits
        return "too long to be shown"


async def grade_cases(
    solution: str,
    cases: Sequence[Case],
    entry: str,
    *,
    place: Place = DEFAULT_PLACE,
    max_parallel: int = 4,
) -> list[CaseResult]:
    """How each case went; `max_parallel` of them at once.

    Once one has run out of its time no other begins, so that a solution that sleeps keeps others waiting
    for a bounded time; the rest is wrong.

    Raises:
        ValueError: `solution` is no str, or `entry` is no name of a function.
        SandboxTooWeakError: the machine cannot give `min_level`.
        SandboxError: the world failed: there is no result, which is not a 0.
    """
    if not isinstance(solution, str):
        raise ValueError(f"solution is a {type(solution).__name__}; expected the source as str")
    if not isinstance(entry, str) or not entry.isidentifier() or keyword.iskeyword(entry):
        raise ValueError(f"entry is {entry!r:.100}; expected the name of the function to call")
    if isinstance(max_parallel, bool) or not isinstance(max_parallel, int) or max_parallel < 1:
        raise ValueError(f"max_parallel is {max_parallel!r}; expected a whole number above 0")
    free = asyncio.Semaphore(max_parallel)
    graded = _Solution(source=solution, entry=entry, place=place)

    async def grade(case: Case) -> CaseResult:
        async with free, slot():
            return await graded.grade(case)

    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(grade(case)) for case in cases]
    except BaseExceptionGroup as errors:  # the first one cancelled the others
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


@dataclass(slots=True, kw_only=True)
class _Solution:
    """One solution while its cases are run, and what they have come to together."""

    source: str
    entry: str
    place: Place
    spent_s: float = 0.0
    has_timed_out: bool = False

    async def grade(self, case: Case) -> CaseResult:
        """One case. A solution that breaks two sandboxes, where a harmless one then runs, is wrong.

        Otherwise breaking the sandbox would be a way not to be scored.
        """
        for _ in range(2):
            if self.has_timed_out or self.spent_s >= self.place.total_s:
                return CaseResult(passed=False, reason=NOT_RUN if self.has_timed_out else LATE)
            started = time.monotonic()
            try:
                called = await self.place.run(self.source, self.entry, case.args)
            except SandboxError:
                self.spent_s += time.monotonic() - started
                await _require_sound(self.place)
                continue
            self.spent_s += called.wall_s
            self.has_timed_out |= called.status == "timeout"
            return _judged(called, case.expected)
        return CaseResult(passed=False, reason="broke its sandbox, twice")


async def _require_sound(place: Place) -> None:
    """Run what any sandbox can. Raises SandboxError: the world cannot."""
    judged = _judged(await place.run("def harmless(): return 0", "harmless", []), 0)
    if not judged.passed:
        raise SandboxError(f"a harmless program did not run either: {judged.reason}")


def _judged(called: ExecResult, expected: Any) -> CaseResult:
    if called.status != "ok" or called.exit_code != 0:
        return CaseResult(passed=False, reason=called.status)
    if not called.result:
        return CaseResult(passed=False, reason="no result, or one of more than 1 MiB")
    try:
        told = json.loads(
            called.result.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        return CaseResult(passed=False, reason="a result that is not one JSON value")
    match told:
        case {"value": value} if len(told) == 1:
            passed = same(expected, value)
            return CaseResult(passed=passed, reason="" if passed else "another value")
        case {"raised": str(what)}:
            return CaseResult(passed=False, reason=f"raised {what[:100]}")
    return CaseResult(passed=False, reason="a result that is not the driver's")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; ValueError when two have one name."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object names a member twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def same(expected: Any, given: Any) -> bool:
    """Whether two values of JSON are equal in type and content: True, 1 and 1.0 are three values."""
    if type(expected) is not type(given):
        return False
    if isinstance(expected, list):
        return len(expected) == len(given) and all(map(same, expected, given))
    if isinstance(expected, dict):
        return expected.keys() == given.keys() and all(same(expected[key], given[key]) for key in expected)
    return expected == given
