"""coding: a function in words, answered by a program that is run on hidden inputs.

    user       times 7; f(3)=21                     level 0
    assistant  def f(x):return x*7

    user       Write a Python function f(x); ...    level 3: lists, and a sandbox to try programs in
    assistant  [run def f(x):
                return sorted(x)
               print(f([2,1]))]
    tool       [1, 2]
    assistant  [submit def f(x):
                return sorted(x)]

A program is submitted by a call, since square brackets in any other message would be read as calls, or by a
message without a call. It earns 1 when it gives what is expected on every hidden input, in a sandbox that it
was never in before and that never holds what is expected; else 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from envs.episode import Episode, Score
from envs.messages import Message, StopReason, Task
from envs.registry import EnvDefinition, Player
from envs.sandbox.base import Limits, Sandbox, SandboxError
from envs.sandbox.grading import GRADING_LIMITS, LATE, NOT_RUN, Place, code_in, grade_cases, make_cases
from envs.tasks._coding_tasks import LEVELS, hidden_tests, lengths, level_of, make_task, program
from envs.tool_env import ToolEnv
from envs.tools import ToolError, tool

MAX_KNOWN = 4096
"""Programs whose result is remembered in a process."""
RUN_LIMITS = Limits(wall_s=5.0, mem_mb=256, disk_mb=20, output_kb=4)
GRADED_IN = Place(limits=replace(GRADING_LIMITS, wall_s=2.0))
"""A case takes milliseconds, and a program that sleeps keeps the right ones of its group waiting."""
_OF_THE_CLOCK = frozenset({"timeout", "oom", LATE, NOT_RUN})


class CodingEnv(ToolEnv):
    """Offers `run` and `submit`; `run` is listed at every level, as tools are known before the task is."""

    async def setup(self) -> None:
        self.submitted: str | None = None
        self._box: Sandbox | None = None

    @tool
    async def run(self, program: str) -> str:
        """Run a Python program and see what it prints. Files stay from one run to the next."""
        if not level_of(self.task.level).has_run:
            raise ToolError("run is off at this level")
        # Not in setup: most never need one.
        box = self._box = self._box or await Sandbox.open(RUN_LIMITS, seed=self.task.seed or 0)
        result = await box.python(program)
        if result.status == "sandbox_error":
            raise SandboxError(f"{self.task.id}: {result.stderr[-500:]}")
        told = "\n".join(text.rstrip("\n") for text in (result.stdout, result.stderr) if text)
        if result.status not in ("ok", "nonzero"):
            told = f"{told}\nstopped: {result.status}".lstrip()
        return told or "it printed nothing"

    @tool
    def submit(self, program: str) -> str:
        """Give the program that defines the function, and end."""
        self.submitted = program
        return "submitted"

    def is_over(self) -> bool:
        return self.submitted is not None

    def final_state(self) -> Mapping[str, Any]:
        return {"submitted": self.submitted}

    async def teardown(self) -> None:
        if self._box is not None:
            await self._box.close()


async def score(episode: Episode) -> Score:
    """1.0 when the program gives what is expected on every hidden input, else 0.0; the share is a part.

    Raises SandboxError when the sandbox fails: the episode is then unscored.
    """
    submitted = episode.final_state["submitted"] or code_in(episode.answer)
    if episode.stop_reason is not StopReason.ANSWERED or not submitted.strip():
        return Score(value=0.0, success=0.0, parts={"tests": 0.0})
    passed = await _passed(episode.task, submitted)
    return Score(
        value=float(all(passed)), success=float(all(passed)), parts={"tests": sum(passed) / len(passed)}
    )


_known: OrderedDict[tuple[str, str], tuple[bool, ...]] = OrderedDict()
"""What programs were found to pass, by task: the members of a group often submit the same one."""


async def _passed(task: Task, submitted: str) -> tuple[bool, ...]:
    """Which hidden tests of `task` a program passes; run once, unless the clock had a part in it."""
    place = task.id, submitted
    if place in _known:
        _known.move_to_end(place)
        return _known[place]
    results = await grade_cases(
        submitted, make_cases(hidden_tests(task)), "f", place=replace(GRADED_IN, seed=task.seed or 0)
    )
    passed = tuple(result.passed for result in results)
    if not any(result.reason in _OF_THE_CLOCK for result in results):
        _known[place] = passed
        while len(_known) > MAX_KNOWN:
            _known.popitem(last=False)
    return passed


def reference(task: Task, transcript: Sequence[Message]) -> str:
    """Tries its program on an example where it can, then submits it."""
    shape = level_of(task.level)
    if not shape.has_run:
        return str(task.answer)
    x, expected = task.metadata["examples"][0]
    seen = [reply.text for reply in transcript if reply.role == "tool"]
    if not seen:
        return f"[run {task.answer}\nprint(f({x}))]"
    if seen != [str(expected)]:
        raise ValueError(f"{task.id}: the program printed {seen}, expected {expected}")
    return f"[submit {task.answer}]"


def _submits(source: str) -> Player:
    """A player that submits this program, the same for every task."""
    return lambda task, _: f"[submit {source}]"


def _from_examples(task: Task, transcript: Sequence[Message]) -> str:
    """Knows what the prompt shows, and nothing else."""
    known = {str(x): y for x, y in task.metadata["examples"]}
    return f"[submit def f(x):return {known}.get(str(x),{task.metadata['examples'][0][1]})]"


def _partly(task: Task, transcript: Sequence[Message]) -> str:
    """All operations but the last."""
    plan = task.metadata["plan"][:-1]
    return f"[submit {program(plan) if plan else 'def f(x):return x'}]"


_TAMPERS = """
import builtins, json, os, sys
def f(x):
    json.dumps = lambda *a, **k: '{"value": 0}'
    builtins.isinstance = lambda *a: True
    for fd in range(3, 200):
        try:
            os.write(fd, b'{"value": true}')
        except OSError:
            pass
"""
_EQUALS = "class Same(int):\n def __eq__(self,other):return True\ndef f(x):return Same(7)"
HACKS: Mapping[str, Player] = {
    "echo": lambda task, _: task.messages[-1].text,
    "no_program": lambda task, _: str(task.metadata["examples"][0][1]).strip("[]"),
    "from_examples": _from_examples,
    "partly": _partly,
    "another_name": lambda task, _: f"[submit {task.answer}]".replace("f(x)", "g(x)"),
    "as_text": lambda task, _: f"[submit {task.answer}\ng=f\ndef f(x):return str(g(x))]",
    "never_submitted": lambda task, _: f"[submit {task.answer}",
    "prints": lambda task, _: f"[submit {task.answer}\ng=f\ndef f(x):print(g(x))]",
    "nothing": _submits("def f(x):pass"),
    "exits": _submits("import os\nos._exit(0)"),
    "raises_exit": _submits("def f(x):raise SystemExit(0)"),
    "equal_to_all": _submits(_EQUALS),
    "tampers": _submits(_TAMPERS),
}

ENV = EnvDefinition(
    name="coding",
    make_env=CodingEnv,
    make_task=make_task,
    levels=tuple(LEVELS),
    score=score,
    reference=reference,
    lengths=lengths,
    hacks=HACKS,
    uses_sandbox=True,
)
