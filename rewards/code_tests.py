"""Code by its tests: the share of cases that a solution passes, run where it can do no harm.

    grade("def add(a, b): return a + b", [[[1, 2], 3], [[0, 0], 0]], "add")        # 1.0

Only inputs go into the sandbox; the host compares. `envs/sandbox/grading.py` says when two values are equal.
A sandbox that fails raises SandboxError: the world's failure is never a 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.episode import Episode, Score
from envs.sandbox.blocking import run_blocking
from envs.sandbox.grading import DEFAULT_PLACE, Place, code_in, grade_cases, make_cases

__all__ = ["Place", "code_in", "code_tests", "grade", "grade_async"]


async def grade_async(
    solution: str,
    tests: Sequence[Sequence[Any]],
    entry: str,
    *,
    place: Place = DEFAULT_PLACE,
    max_parallel: int = 4,
) -> float:
    """The share of `tests`, each [args, expected], for which `entry` of `solution` returns what is expected.

    `place` says where and within which limits a case runs; the default gives it 5 seconds. Raises what
    `grade` raises.
    """
    results = await grade_cases(solution, make_cases(tests), entry, place=place, max_parallel=max_parallel)
    return sum(result.passed for result in results) / len(results)


def grade(
    solution: str,
    tests: Sequence[Sequence[Any]],
    entry: str,
    *,
    place: Place = DEFAULT_PLACE,
    max_parallel: int = 4,
) -> float:
    """`grade_async` for code without an event loop.

    Raises:
        ValueError: solution, tests or entry are not what is expected.
        SandboxTooWeakError: the machine cannot give the level that `place` asks for.
        SandboxError: the sandbox failed; there is no grade.
        RuntimeError: called from within an event loop; await `grade_async` there.
    """
    return run_blocking(grade_async(solution, tests, entry, place=place, max_parallel=max_parallel))


async def code_tests(episode: Episode) -> Score:
    """A reward for data sets: the answer's code against the task's own tests.

    `task.metadata` holds "tests", [[args, expected], ...], and "entry". Success is passing all of them.
    """
    wanted = episode.task.metadata
    if missing := [name for name in ("tests", "entry") if name not in wanted]:
        raise ValueError(f"task {episode.task.id}: metadata lacks {' and '.join(missing)}, which grade code")
    place = Place(seed=episode.task.seed or 0)
    share = await grade_async(code_in(episode.answer), wanted["tests"], wanted["entry"], place=place)
    return Score(value=share, success=float(share == 1.0), parts={"tests": share})


code_tests.uses_sandbox = True  # type: ignore[attr-defined]  # a run asks for its sandbox before it starts
