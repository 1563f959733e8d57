"""check_env: the contract that every environment passes, the shipped ones and yours.

from envs.check import check_env
check_env(ENV)          # EnvContractError lists everything that is broken
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from envs.base import Env
from envs.episode import score_of
from envs.messages import Message, ParseStatus, StepResult, Task, ToolSpec, message
from envs.play import play
from envs.registry import EnvDefinition, Lengths, resolve_env
from envs.splits import Split, task_seed
from envs.tools import assistant_message

# Attempts at calls that no environment offers, some of them at what an environment is made of.
_BAD_CALLS = ("[]", "[", "[[[", "[no_such_tool 1]", "[close]", "[score]", "[step 1]", "[__init__]")
_FRESH_PROCESS = "import sys; from envs.check import tasks_digest; print(tasks_digest(*sys.argv[1:]))"
_FRESH_PROCESS_TIMEOUT_S = 120.0


class EnvContractError(Exception):
    """An environment breaks its contract; `violations` lists every way that was found."""

    def __init__(self, name: str, violations: Sequence[str]) -> None:
        self.violations = tuple(violations)
        listed = "\n".join(f"  - {violation}" for violation in violations)
        super().__init__(f"environment {name!r} breaks its contract:\n{listed}")


def check_env(definition: EnvDefinition, levels: Sequence[int] | None = None, *, num_seeds: int = 16) -> None:
    """Check `definition` on `num_seeds` tasks a split and level; EnvContractError lists all violations.

    Plays each task several times and starts one more Python process. `definition.name` must be the string by
    which `resolve_env` finds it. Inside a running event loop await `check_env_async` instead.
    """
    asyncio.run(check_env_async(definition, levels, num_seeds=num_seeds))


async def check_env_async(
    definition: EnvDefinition, levels: Sequence[int] | None = None, *, num_seeds: int = 16
) -> None:
    """`check_env` for callers that have an event loop."""
    if num_seeds < 1:
        raise ValueError(f"check_env: num_seeds is {num_seeds}, expected at least 1")
    chosen = [definition.require_level(level) for level in (definition.levels if levels is None else levels)]
    before = _global_random_states()
    violations: list[str] = []
    for level in chosen:
        for check in _CHECKS:
            where = f"level {level}, {check.__name__.strip('_').replace('_', ' ')}: "
            try:
                violations += [where + problem async for problem in check(definition, level, num_seeds)]
            except Exception as error:
                violations.append(f"{where}raised {type(error).__name__}: {error}")
    after = _global_random_states()
    if any(after[name] != state for name, state in before.items()):
        violations.append("global random state was touched: draw from random.Random(task.seed) only")
    if not violations:
        violations += await asyncio.to_thread(_fresh_process_violations, definition, chosen, num_seeds)
    if violations:
        raise EnvContractError(definition.name, violations)


def _tasks(definition: EnvDefinition, level: int, num_seeds: int, *splits: Split) -> Iterator[Task]:
    for split in splits or tuple(Split):
        for index in range(num_seeds):
            yield definition.make_task(level, task_seed(split, 0, index))


async def _tasks_are_pure(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    ids: set[str] = set()
    for task in _tasks(definition, level, num_seeds):
        if task.seed is None or (task.env, task.level) != (definition.name, level):
            yield f"task {task.id} says env={task.env!r}, level={task.level}, seed={task.seed}"
        elif definition.make_task(level, task.seed) != task:
            yield f"make_task({level}, {task.seed}) gave two different tasks"
        if problem := _json_problem(task.metadata):
            yield f"task {task.id}: metadata {problem}"
        if task.id in ids:
            yield f"task id {task.id!r} names two seeds"
        ids.add(task.id)


async def _held_out_is_unseen(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    trained_on = _tasks(definition, level, num_seeds, Split.TRAIN, Split.WARM_START)
    seen = {task.messages for task in trained_on}
    for task in _tasks(definition, level, num_seeds, Split.HELD_OUT):
        if task.messages in seen:
            yield f"held-out task {task.id} is also trained on: {task.messages[-1].text!r}"


async def _reference_solves(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    stated = definition.lengths(level)
    for task in _tasks(definition, level, num_seeds):
        spoken: list[str] = []

        def player(task: Task, transcript: Sequence[Message], spoken: list[str] = spoken) -> str:
            spoken.append(definition.reference(task, transcript))
            return spoken[-1]

        episode = await play(definition.make_env, task, player, max_turns=stated.turns)
        score = await score_of(definition.score, episode)
        if score.value != 1.0:
            yield f"{task.id}: the reference player scored {score.value} ({score.error or score.parts})"
        if problem := _json_problem(episode.final_state):
            yield f"{task.id}: final_state {problem}"
        needed = Lengths(
            prompt_chars=sum(len(opening.text) for opening in task.messages),
            turns=len(spoken),
            turn_chars=max(map(len, spoken)),
            reply_chars=max((len(m.text) for m in episode.transcript if m.role == "tool"), default=0),
        )
        for name, limit in asdict(stated).items():
            if getattr(needed, name) > limit:
                yield f"{task.id}: lengths({level}).{name} is {limit}, needed {getattr(needed, name)}"


async def _wrong_players_fail(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    silence = {"silence": lambda task, transcript: ""}
    for task in _tasks(definition, level, num_seeds, Split.TRAIN):
        for name, player in {**silence, **definition.hacks}.items():
            episode = await play(definition.make_env, task, player, max_turns=definition.lengths(level).turns)
            value = (await score_of(definition.score, episode)).value
            # Doing nothing may earn a crumb of a graded reward, but never the whole; a hack earns nothing.
            if value is None or value >= 1.0 or (name in definition.hacks and value != 0.0):
                yield f"{task.id}: the wrong player {name!r} scored {value}"


async def _episodes_are_alone(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    """Episodes that take turns in one loop are equal to episodes played one after another."""
    tasks = list(_tasks(definition, level, num_seeds, Split.TRAIN))
    max_turns = definition.lengths(level).turns
    alone = [
        await play(definition.make_env, task, definition.reference, max_turns=max_turns) for task in tasks
    ]
    together = await asyncio.gather(
        *(
            play(lambda: _Yielding(definition.make_env()), task, definition.reference, max_turns=max_turns)
            for task in tasks
        )
    )
    for task, first, second in zip(tasks, alone, together, strict=True):
        if first != second:
            yield f"{task.id}: the episode went differently beside others; nothing may be shared between them"


async def _serves_one_episode(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    task = next(_tasks(definition, level, num_seeds))
    unused = definition.make_env()
    await unused.close()  # the policy may fail before the first reset
    env = definition.make_env()
    tools = tuple(env.tools)
    if problem := _json_problem({spec.name: spec.parameters for spec in tools}):
        yield f"tools' parameters {problem}"
    await env.reset(task)
    if await _accepts(env.reset(task)):
        yield "a second reset was accepted; an environment serves one episode"
    done = False
    for _ in range(definition.lengths(level).turns):
        if not done:
            done = (await env.step(message("assistant", ""))).done
    if tuple(env.tools) != tools:
        yield f"tools changed during the episode, from {tools} to {tuple(env.tools)}"
    if done and await _accepts(env.step(message("assistant", ""))):
        yield "a step after the end was accepted"
    await env.close()
    if await _accepts(env.step(message("assistant", ""))):
        yield "a step after close was accepted"


async def _bad_calls_are_told(definition: EnvDefinition, level: int, num_seeds: int) -> AsyncIterator[str]:
    """Each attempt that is no proper call is answered by an error message, and the episode goes on."""
    task = next(_tasks(definition, level, num_seeds))
    specs = tuple(definition.make_env().tools)
    if not specs:
        return
    for text in (*_BAD_CALLS, *(f"[{spec.name} " for spec in specs), "".join(f"[{s.name}]" for s in specs)):
        action = assistant_message(text, specs)
        env = definition.make_env()
        try:
            await env.reset(task)
            result = await env.step(action)
        finally:
            await env.close()
        if [reply.tool_call_id for reply in result.messages] != [call.id for call in action.tool_calls]:
            yield f"{text!r} was answered by {result.messages}, expected one tool message a call, in order"
            continue
        for call, reply in zip(action.tool_calls, result.messages, strict=True):
            if call.status is not ParseStatus.OK and not (reply.is_error and reply.text):
                yield f"{text!r} ({call.status}) was answered by {reply.text!r}, expected an error message"


_CHECKS = (
    _tasks_are_pure,
    _held_out_is_unseen,
    _reference_solves,
    _wrong_players_fail,
    _episodes_are_alone,
    _serves_one_episode,
    _bad_calls_are_told,
)


class _Yielding:
    """An environment that lets the other episodes run before each of its steps."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self.final_state = env.final_state
        self.close = env.close

    @property
    def tools(self) -> Sequence[ToolSpec]:
        return self._env.tools

    async def reset(self, task: Task) -> Sequence[Message]:
        await asyncio.sleep(0)
        return await self._env.reset(task)

    async def step(self, action: Message) -> StepResult:
        await asyncio.sleep(0)
        return await self._env.step(action)


async def _accepts(call: Awaitable[object]) -> bool:
    """Whether an awaitable that must be refused was not."""
    try:
        await call
    except Exception:
        return False
    return True


def _json_problem(value: Mapping[str, Any]) -> str | None:
    """Why `value` would not survive a JSONL record; None when it would."""
    try:
        read_back = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        return f"is not JSON: {error}"
    return None if read_back == value else f"changes when written as JSON: {value!r} becomes {read_back!r}"


def _global_random_states() -> dict[str, object]:
    """Of the generators that exist in this process; numpy's state is (name, 624 words, position, ...)."""
    states: dict[str, object] = {"random": random.getstate()}
    if numpy := sys.modules.get("numpy"):
        name, words, *rest = numpy.random.get_state()
        states["numpy"] = (name, words.tobytes(), *rest)
    return states


def tasks_digest(name: str, levels: str, num_seeds: str) -> str:
    """A digest of the tasks that environment `name` makes in this process; `levels` is a JSON list."""
    definition = resolve_env(name)
    tasks = [asdict(t) for level in json.loads(levels) for t in _tasks(definition, level, int(num_seeds))]
    return blake2b(json.dumps(tasks, sort_keys=True, default=dict).encode()).hexdigest()


def _fresh_process_violations(definition: EnvDefinition, levels: Sequence[int], num_seeds: int) -> list[str]:
    """The same tasks must come from another process whose string hashes are salted otherwise."""
    arguments = [definition.name, json.dumps(list(levels)), str(num_seeds)]
    try:
        here = tasks_digest(*arguments)
    except ValueError as error:
        return [f"its name does not lead back to it: {error}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "random"}
    fresh = subprocess.run(
        [sys.executable, "-c", _FRESH_PROCESS, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_FRESH_PROCESS_TIMEOUT_S,
        check=False,
    )
    if fresh.returncode != 0:
        return [f"another process could not make the tasks: {fresh.stderr.strip()[-500:]}"]
    return [] if fresh.stdout.strip() == here else ["make_task gave other tasks in another process"]
