import contextlib
import io
import os
import pty
from pathlib import Path

import pytest

from rl.config import Config
from rl.console import HEADER_EVERY, RunConsole
from rl.defaults import resolve
from rl.gates import Gap
from rl.intervals import SuccessRate, verdict
from rl.machine import Machine
from rl.screens import (
    COLUMNS,
    EndFacts,
    Link,
    Role,
    StartFacts,
    start_lines,
    step_header,
    step_line,
    world_note,
)
from rl.token_colors import TokenKind, printable, token_runs, trajectory_text
from rollout.trajectory import Trajectory, Turn
from tests.made_trajectories import completion, trajectory

LAPTOP = Machine(host="laptop", cores=2, memory_bytes=8 << 30, gpus=())
WORDS = {1: "<user>", 2: "1+2", 10: "[add", 11: " 1 2]", 3: "<tool>3", 12: "3\x1b[31m"}
METRICS = {name: 0.5 for column in COLUMNS for name in column.names}


def decode(token_ids: tuple[int, ...]) -> str:
    return "".join(WORDS[token_id] for token_id in token_ids)


def two_turns(reward: float | None = 1.0) -> Trajectory:
    return trajectory(
        "3-0-1",
        reward=reward,
        turns=[
            Turn(parent=None, context_ids=(1, 2), completion=completion([10, 11])),
            Turn(parent=0, context_ids=(3,), completion=completion([12])),
        ],
    )


def start_facts() -> StartFacts:
    return StartFacts(
        title="grpo on calc",
        config=resolve(Config(num_groups=6, group_size=4, num_minibatches=3, micro_batch_size=2), LAPTOP),
        roles=[
            Role(name="learner", device="cpu", num_threads=2, detail="rank 0 of 1"),
            Role(name="engine 0", device="cpu", num_threads=1),
        ],
        channels=[Link(name="weights", between="learner -> engine 0", by="shm")],
        communicators=[Link(name="gradients", between="learner", by="none: one rank")],
        num_parameters=500_000,
        num_trained=500_000,
        sync_bytes=2_000_000,
        num_cores=2,
        versions={"torch": "2.13.0", "vllm": "0.32.0"},
        run_dir="runs/x",
    )


def end_facts(num_after: int) -> EndFacts:
    before, after = SuccessRate(102, 256), SuccessRate(num_after, 256)
    return EndFacts(
        before=before,
        after=after,
        verdict=verdict(before, after, 0.3),
        wall_s=123.4,
        paths={"policy": "runs/x/checkpoints/step_000060"},
        next_commands=["python -m scripts.view runs/x"],
    )


def test_the_start_screen_has_the_map_the_arithmetic_the_bytes_and_the_versions():
    text = "\n".join(start_lines(start_facts()))
    assert "learner   cpu  2 threads  rank 0 of 1" in text
    assert "engine 0  cpu  1 thread" in text
    assert "weights  learner -> engine 0  shm" in text
    assert "6 tasks x 4 trajectories a task = 24 trajectories a step" in text
    assert "24 trajectories / 3 minibatches = 8 trajectories an optimizer update" in text
    assert "8 trajectories / 2 in a forward pass = 4 micro-batches an update" in text
    assert "60 steps x 3 updates = 180 optimizer updates" in text
    assert "a sync moves 2,000,000 bytes" in text
    assert "torch 2.13.0, vllm 0.32.0" in text
    assert "grpo: advantage grpo" in text


def test_the_cells_stand_under_their_headers():
    assert len(step_line(12, METRICS)) == len(step_header())


def test_a_metric_that_a_step_lacks_shows_as_a_dash():
    without = {name: value for name, value in METRICS.items() if name != "rollout/success"}
    cells = step_line(1, without).split()
    assert cells[1:3] == ["0.50±0.50", "-"]


def test_the_runs_of_a_trajectory_are_its_path_in_order():
    runs = [(run.kind, run.token_ids) for run in token_runs(two_turns())]
    assert runs == [
        (TokenKind.PROMPT, (1, 2)),
        (TokenKind.SAMPLED, (10, 11)),
        (TokenKind.TOOL, (3,)),
        (TokenKind.SAMPLED, (12,)),
    ]


def test_the_sampled_tokens_of_an_unscored_trajectory_are_masked():
    kinds = [run.kind for run in token_runs(two_turns(reward=None))]
    assert kinds == [TokenKind.PROMPT, TokenKind.MASKED, TokenKind.TOOL, TokenKind.MASKED]


def test_of_a_fork_the_path_to_the_last_turn_is_shown():
    forked = trajectory(
        turns=[
            Turn(parent=None, context_ids=(1,), completion=completion([10])),
            Turn(parent=0, context_ids=(3,), completion=completion([11])),
            Turn(parent=0, context_ids=(2,), completion=completion([12])),
        ]
    )
    assert [token for run in token_runs(forked) for token in run.token_ids] == [1, 10, 2, 12]


def test_without_colours_brackets_tell_the_kinds_apart():
    text = trajectory_text(two_turns(), decode, colors=False).plain
    assert text == "<user>1+2[[[add 1 2]]]<<<tool>3>>[[3\\x1b[31m]]"


def test_what_a_policy_writes_cannot_steer_the_terminal():
    assert printable("a\x1b[2J\x07\x9b\r\nb") == "a\\x1b[2J\\x07\\x9b\\r\nb"


def printed(*, num_after: int = 230) -> str:
    out = io.StringIO()
    with RunConsole(2, file=out) as console:
        console.show_start(start_facts())
        console.show_gap(
            Gap(mean=1e-7, max=9.5e-7, num_tokens=640), Gap(mean=1e-5, max=2e-3, num_tokens=641), limit=1e-4
        )
        console.say("[red]not markup[/red]")
        console.show_step(1, METRICS)
        console.show_step(2, METRICS)
        console.show_trajectory(2, two_turns(), decode)
        console.show_end(end_facts(num_after))
    return out.getvalue()


def test_in_a_file_there_are_plain_whole_lines():
    text = printed()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines.count(step_header()) == 1
    assert step_line(2, METRICS) in lines
    assert "[red]not markup[/red]" in lines


def test_each_gap_is_shown_with_its_place_and_verdict():
    before, after = (line for line in printed().splitlines() if " max " in line and "tokens" in line)
    assert "before any sync" in before
    assert "9.5e-07" in before
    assert "within the limit" in before
    assert "after a sync" in after
    assert "641 tokens" in after
    assert "ABOVE the limit" in after


def test_the_legend_explains_every_kind():
    text = printed()
    assert "step 2, trajectory 3-0-1: reward 1, stopped: answered, 2 turns, 3 sampled tokens" in text
    assert "[[sampled, trained]]" in text
    assert "<<tool and template>>" in text
    assert "((sampled, masked" in text


@pytest.mark.parametrize(("num_after", "word"), [(230, "PASS"), (120, "FAIL")])
def test_the_last_line_is_the_verdict(num_after: int, word: str):
    lines = printed(num_after=num_after).splitlines()
    assert lines[-1].startswith(f"{word}: ")
    assert any("starting policy" in line and "102 of 256" in line for line in lines)
    assert any("trained policy" in line and f"{num_after} of 256" in line for line in lines)
    assert any("checkpoints/step_000060" in line for line in lines)
    assert any("python -m scripts.view runs/x" in line for line in lines)


def test_the_header_comes_back_after_some_lines():
    out = io.StringIO()
    with RunConsole(50, file=out) as console:
        for step in range(1, HEADER_EVERY + 2):
            console.show_step(step, METRICS)
    assert out.getvalue().splitlines().count(step_header()) == 2


def read_all(terminal: int) -> bytes:
    """Everything written to a pseudo-terminal whose other end is closed."""
    chunks = []
    with contextlib.suppress(OSError):  # EIO is how its end is told
        while chunk := os.read(terminal, 4096):
            chunks.append(chunk)
    os.close(terminal)
    return b"".join(chunks)


def test_on_a_terminal_there_are_colours_and_a_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, RunConsole(4, file=terminal) as console:
        assert console.has_colors
        console.show_step(1, METRICS)
        console.show_trajectory(1, two_turns(), decode)
    text = read_all(ours).decode()
    assert "1/4" in text  # the bar
    assert "\x1b[1;32m[add 1 2]" in text  # sampled: bold green
    assert "3\\x1b[31m" in text
    assert "[[" not in text


def test_a_step_tells_of_the_world_only_when_it_spoiled_something():
    sound = {"rollout/close_errors": 0.0, "dropped/uninformative_group": 4.0, "rollout/unscored": 0.0}
    assert world_note(sound) == ""
    spoiled = {"error/SandboxError": 2.0, "unscored/timeout": 1.0, "retry/ToolServerError": 3.0}
    told = "failed by the world: SandboxError 2; by the reward: timeout 1; tried again: ToolServerError 3"
    assert world_note(sound | spoiled) == told
    assert world_note({"rollout/close_errors": 2.0}) == "failed to close: 2"
    file = io.StringIO()
    with RunConsole(3, file=file) as console:
        console.show_step(1, sound)
        console.show_step(2, spoiled)
    first, second = file.getvalue().splitlines()[1:3]
    assert told not in first
    assert second.endswith(f"  {told}")
