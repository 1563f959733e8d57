"""A small run directory, written by the classes that a run writes it with."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from envs.messages import Message, ParseStatus, StopReason, ToolCall, message
from recipes.char_tokenizer import make_char_tokenizer
from rl.config import Config
from rl.machine import Machine
from rl.run_dir import RunDir
from rollout.record import Record, TrajectoryRecorder
from rollout.trajectory import Completion, Trajectory, TrajectoryError, Turn, VersionSpan
from tests.made_trajectories import trajectory

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)> \u202eevil \ud800 \x1b[31m 漢ü</pre>"
)
REWARDS = (1.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Made:
    """Where the run is, and its lines in order."""

    path: Path
    records: list[Record]


def make_run(
    path: Path, *, num_steps: int = 2, algorithm: str = "grpo", hold: bool = False, older: bool = False
) -> Made:
    """Two held-out tasks, then steps of two groups of four; the last line is hostile and unscored.

    `hold` leaves the run's lock taken, as while it goes on; `older` writes records as they were before they
    held advantages.
    """
    model = path.parent / "model"
    _tokenizer().save_pretrained(model)
    config = Config(
        env="calc", algorithm=algorithm, model=str(model), num_steps=num_steps, num_groups=2, group_size=4
    )
    directory = RunDir(path)
    directory.write_config(config)
    directory.write_manifest(config, Machine(host="test", cores=2, memory_bytes=2**30, gpus=()))
    for step in range(1, num_steps + 1):
        numbers = {"rollout/reward_mean": 0.25 + step / 10, "policy/loss": -step / 7, "rollout/turns": 2.0}
        directory.append_metrics(step, numbers)
    records = [*_evaluation(), *(record for step in range(1, num_steps + 1) for record in step_records(step))]
    records[-1] = _made_hostile(records[-1])
    recorder = TrajectoryRecorder(directory.trajectories, max_bytes=10**9)
    recorder.write(records)
    recorder.close()
    if older:
        without_advantages(directory.trajectories)
    if hold:
        HELD.append(directory)
    else:
        directory.close()
    return Made(path, records)


HELD: list[RunDir] = []
"""Runs that are kept locked until a test releases them."""


def without_advantages(path: Path) -> None:
    """Make the records of a file those of a version that wrote none."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "advantages"}) + "\n" for row in rows)
    )


def step_records(step: int) -> list[Record]:
    """The two groups of a training step."""
    return [_trained(step, 2 * step + group, member) for group in range(2) for member in range(4)]


@cache
def _tokenizer() -> Any:
    return make_char_tokenizer()


def _evaluation() -> list[Record]:
    return [
        Record(step=0, split="eval", group=task, member=0, trajectory=_episode(f"-2-{task}-0", 1.0, 0))
        for task in range(2)
    ]


def _trained(step: int, group: int, member: int) -> Record:
    made = _episode(f"{step - 1}-{group}-{member}", REWARDS[member], step - 1)
    # The learner says a hundredth of a nat less of the first token and the same of the others.
    old = tuple(
        tuple(x - 0.01 * (place == 0) for place, x in enumerate(turn.completion.logprobs))
        for turn in made.turns
    )
    # None that an algorithm gives for these rewards, so that a computed one is told from it.
    sign = 1.0 if REWARDS[member] else -1.0
    weights = tuple(
        tuple(sign * (0.5 if (turn, place) == (0, 0) else 0.75) for place in range(len(numbers)))
        for turn, numbers in enumerate(old)
    )
    return Record(
        step=step,
        split="train",
        group=group,
        member=member,
        trajectory=made,
        old_logprobs=old,
        advantages=weights,
    )


def _episode(name: str, reward: float, version: int) -> Trajectory:
    call = ToolCall(id="call_0", name="calc", arguments={"expression": "1+2"}, text="calc 1+2")
    cut_off = ToolCall(id="call_1", name="calc", arguments={"expression": "9*9"}, text="calc 9*9")
    unknown = ToolCall(id="call_2", name="cal", status=ParseStatus.UNKNOWN_TOOL, text="cal", problem="no cal")
    is_wrong = reward == 0.0
    said = (
        message("assistant", "", tool_calls=(call, cut_off, unknown) if is_wrong else (call,)),
        message("tool", "error: no" if is_wrong else "3", tool_call_id="call_0", is_error=is_wrong),
        message("assistant", f"so {reward:g}"),
    )
    made = trajectory(
        name,
        reward=reward,
        said=said,
        stop_reason=StopReason.MAX_TURNS if is_wrong else StopReason.ANSWERED,
        turns=(_turn(None, "user\n1+2=?", "calc 1+2", version), _turn(0, "\n3\n", "so 3", version)),
        metrics={"tool_errors": float(is_wrong)},
        timings_s={"generate": 1.5, "tools": 0.25, "reward": 0.001},
        parts={"answer": reward},
        success=reward,
    )
    return replace(made, call_s={"call_0": 0.125})


def _turn(parent: int | None, context: str, sampled: str, version: int) -> Turn:
    tokenizer = _tokenizer()
    ids = tuple(tokenizer(sampled)["input_ids"])
    half = len(ids) // 2
    spoken = Completion(
        token_ids=ids,
        logprobs=tuple(-0.125 * (place + 1) for place in range(len(ids))),
        version_spans=(
            VersionSpan(version=version, start=0, end=half),
            VersionSpan(version=version + 1, start=half, end=len(ids)),
        ),
        finish_reason="stop",
    )
    return Turn(parent=parent, context_ids=tuple(tokenizer(context)["input_ids"]), completion=spoken)


def _made_hostile(record: Record) -> Record:
    """What a policy may write: markup, controls, half a surrogate pair; and a log-prob that is no number."""
    made = record.trajectory
    said: tuple[Message, ...] = (*made.episode.transcript, message("assistant", HOSTILE))
    spoken = replace(
        made.turns[0].completion, logprobs=(float("nan"), *made.turns[0].completion.logprobs[1:])
    )
    return replace(
        record,
        old_logprobs=None,
        advantages=None,
        trajectory=replace(
            made,
            episode=replace(made.episode, transcript=said, stop_reason=StopReason.ERROR),
            score=replace(made.score, value=None, success=None, error=HOSTILE),
            error=TrajectoryError(kind="SandboxDied", message=HOSTILE),
            turns=(replace(made.turns[0], completion=spoken), made.turns[1]),
        ),
    )
