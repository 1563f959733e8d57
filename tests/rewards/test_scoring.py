"""A user's reward in child processes: what hangs, raises, exits or crashes costs its own sample alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from envs.tasks.calc import ENV
from rewards.base import Sample, check_reward, resolve_reward
from rewards.forms import RewardBugError
from rewards.scoring import UserReward
from tests.finished_run import ROOT

HOSTILE = ROOT / "tests" / "rewards" / "user_rewards" / "hostile.py"
JUDGE = replace(ENV, score=lambda episode: Score(value=0.0, success=1.0))


def sample(said: str, id: str = "1-2-3") -> Sample:
    task = Task(id="t", env="calc", messages=(message("user", "1+2"),), answer="3")
    transcript = (*task.messages, message("assistant", said))
    return Sample(id=id, episode=Episode(task=task, transcript=transcript, stop_reason=StopReason.ANSWERED))


def family() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@asynccontextmanager
async def opened(function: str, num_workers: int = 2) -> AsyncIterator[UserReward]:
    """A reward of hostile.py; when it is closed no process is left that was not there before."""
    before = family()
    reward = resolve_reward(f"{HOSTILE}:{function}", JUDGE, num_workers=num_workers)
    assert isinstance(reward, UserReward)
    await reward.start()
    try:
        yield reward
    finally:
        await reward.close()
    assert family() - before == set()


async def each(reward: UserReward, words: Sequence[str], timeout_s: float = 1.0) -> list[Score]:
    calls = (reward.score([sample(word, f"id-{word}")], timeout_s=timeout_s) for word in words)
    return [scores[0] for scores in await asyncio.gather(*calls)]


@pytest.mark.parametrize(
    ("deed", "kind", "told"),
    [
        ("hang", "timeout", "no result after 1 s; its process was killed"),
        ("swallow", "timeout", "no result after 1 s"),
        ("deaf", "timeout", "no result after 1 s"),
        ("raise", "exception", """KeyError: 'no such key' ("""),
        ("exit", "exception", "SystemExit: 3"),
        ("gorge", "exception", "MemoryError"),
        ("hard_exit", "crashed", "its process ended with exit status 7"),
        ("kill", "crashed", "its process was killed by SIGKILL"),
        ("segfault", "crashed", "its process was killed by SIGSEGV; printed last:\nFatal Python error"),
        ("nan", "invalid", "returned nan, expected a finite number"),
        ("text", "invalid", "returned '0.5', expected a finite number"),
        ("none", "invalid", "returned None, expected a finite number"),
    ],
)
async def test_a_bad_call_leaves_its_sample_unscored_and_its_siblings_scored(deed, kind, told):
    async with opened("compute_score") as reward:
        first, bad, *others = await each(reward, ["fine", deed, "fine", "fine", "fine"])
        assert bad.value is None
        assert bad.error_kind == kind
        assert bad.error.startswith(
            f"reward {reward.name if kind in ('timeout', 'crashed') else 'compute_score'} on id-"
        )
        assert told in bad.error
        fine = Score(value=1.0, success=1.0, parts={"acc": 1.0})
        assert [first, *others] == [fine] * 4
        started = time.monotonic()
        assert await each(reward, ["fine"] * 20) == [fine] * 20  # the slot is back
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("deed", ["alarm", "leave_alarm", "spew", "threads", "loop", "fork_and_return"])
async def test_what_is_merely_unusual_is_scored(deed):
    async with opened("compute_score", num_workers=1) as reward:
        assert [score.value for score in await each(reward, [deed, "fine", deed], 10)] == [0.5, 1.0, 0.5]
        # an alarm that was left would ring in the next call
        assert [score.value for score in await each(reward, ["slow", "fine"], 10)] == [0.75, 1.0]


@pytest.mark.parametrize("deed", ["fork", "escape"])
@pytest.mark.parametrize("end", ["close", "hang", "hard_exit"])
async def test_no_process_of_the_functions_own_outlives_its_worker(tmp_path, monkeypatch, deed, end):
    pids = tmp_path / "pids"
    monkeypatch.setenv("SLEEPERS", str(pids))
    async with opened("compute_score", num_workers=1) as reward:
        assert [score.value for score in await each(reward, [deed])] == [0.5]
        sleeper = int(pids.read_text())
        assert psutil.pid_exists(sleeper)
        if end != "close":
            await each(reward, [end], 0.3)
            assert not psutil.pid_exists(sleeper)
    assert not psutil.pid_exists(sleeper)


@pytest.mark.alone
async def test_calls_run_side_by_side_and_waiting_for_a_worker_costs_no_time_of_a_call(monkeypatch):
    async with opened("compute_score", num_workers=2) as reward:
        started = time.monotonic()
        scores = await each(reward, ["hang"] * 4, 1.0)
        seconds = time.monotonic() - started
        assert [score.error_kind for score in scores] == ["timeout"] * 4
        assert 2.0 <= seconds < 3.5  # two at a time, each its whole second, and no third round


@pytest.mark.parametrize("function", ["all_of", "batch_of"])
@pytest.mark.parametrize(
    ("deed", "kind"),
    [("hang", "timeout"), ("raise", "exception"), ("hard_exit", "crashed"), ("nan", "invalid")],
)
async def test_what_one_member_does_to_a_function_over_lists_costs_its_siblings_nothing(function, deed, kind):
    async with opened(function) as reward:
        assert reward.is_group
        group = [sample("a", "a"), sample(deed, "h"), sample("b", "b")]
        scores = await reward.score(group, timeout_s=1)
        assert [score.value for score in scores] == [1.0, None, 1.0]
        assert scores[1].error_kind == kind
        assert "on h: " in scores[1].error
        assert [s.value for s in await reward.score([group[0], group[2]], timeout_s=1)] == [1.0, 1.0]


async def test_a_function_that_compares_members_fails_as_a_whole_and_says_so():
    async with opened("compared") as reward:
        assert reward.is_group
        scores = await reward.score([sample("a", "a"), sample("hang", "h")], timeout_s=0.5)
        assert [score.error_kind for score in scores] == ["timeout"] * 2
        assert "(one call for 2 samples: none has a score)" in scores[0].error


async def test_a_wrong_length_stops_the_run_with_function_expected_and_got():
    async with opened("all_of") as reward:
        samples = [sample("short", "1-2-0"), sample("b", "1-2-1")]
        with pytest.raises(RewardBugError, match="reward all_of returned 1 results, expected 2"):
            await reward.score(samples, timeout_s=1)


async def test_a_cancelled_call_leaves_no_worker_at_work():
    async with opened("compute_score", num_workers=1) as reward:
        call = asyncio.ensure_future(each(reward, ["hang"], 60))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [score.value for score in await each(reward, ["fine"])] == [1.0]


IMPORTS = {
    "raises": (
        "import json\njson.loads('{')\n",
        ["Traceback", "my_reward.py", "json.loads('{')", "JSONDecodeError"],
    ),
    "syntax": ("def f(:\n", ["my_reward.py", "SyntaxError"]),
    "missing": ("import no_such_package\n", ["my_reward.py", "No module named 'no_such_package'"]),
    "exits": ("import os\nos._exit(4)\n", ["while it was imported", "exit status 4"]),
    "sys_exit": ("import sys\nsys.exit(4)\n", ["my_reward.py", "SystemExit: 4"]),
    "other_name": ("def g(completions): ...\n", ["unknown name 'f'", "known: g"]),
    "unclear": ("def f(prompts, **kw): ...\n", ["is none that is known", "from_openrlhf"]),
}


@pytest.mark.parametrize("what", IMPORTS)
async def test_a_file_that_does_not_load_is_refused_with_its_own_traceback(tmp_path, what):
    source, told = IMPORTS[what]
    file = tmp_path / "my_reward.py"
    file.write_text(source)
    before = family()
    with pytest.raises(ValueError, match="cannot be used") as refused:
        await check_reward(f"{file}:f", ENV, 1)
    text = str(refused.value)
    assert [part for part in told if part not in text] == []
    assert "rewards/scoring" not in text
    assert "envs/names.py" not in text
    assert family() == before


async def test_an_import_that_hangs_is_refused_at_its_deadline(tmp_path, monkeypatch):
    file = tmp_path / "my_reward.py"
    file.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr("rewards.scoring_worker.START_S", 0.5)
    before = family()
    with pytest.raises(ValueError, match="its import had not come to an end"):
        await check_reward(f"{file}:f", ENV, 1)
    assert family() == before


async def test_a_column_that_a_task_lacks_is_refused_with_the_task_and_its_columns():
    with pytest.raises(ValueError, match=r"takes hardness, which task calc-1-\d+ lacks") as refused:
        await check_reward(f"{HOSTILE}:needs_column", ENV, 1)
    assert "(known: answer, ground_truth, label, plan, solution)" in str(refused.value)


PARENT = """
import asyncio, sys
from tests.rewards.test_scoring import JUDGE, each, resolve_reward
async def main():
    reward = resolve_reward(sys.argv[1], JUDGE, num_workers=2)
    print([s.value for s in await each(reward, ["fork", "escape"], 30)], flush=True)
    await each(reward, ["hang", "hang"], 600)
asyncio.run(main())
"""


def test_nothing_is_left_after_kill_9_of_the_parent(tmp_path: Path):
    pids = tmp_path / "pids"
    parent = psutil.Popen(
        [sys.executable, "-c", PARENT, f"{HOSTILE}:compute_score"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"SLEEPERS": str(pids), "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout.readline() == b"[0.5, 0.5]\n"
    children = parent.children(recursive=True)
    sleepers = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    assert len(children) >= 5
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    _, alive = psutil.wait_procs([*children, *sleepers], timeout=5)
    assert alive == []
