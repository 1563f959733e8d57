"""A user's reward that grades in a sandbox and is killed at its deadline leaves nothing of the sandbox."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.base import resolve_reward
from rewards.scoring import UserReward
from tests.envs.sandbox.openings import require_backend
from tests.rewards.test_scoring import JUDGE, family, sample

GRADER = """
from envs.sandbox import Limits, factory

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    run = factory(Limits(wall_s=60), backend="{backend}").run
    run("import time\\nfor n in range(10000): open(str(n), 'w')\\ntime.sleep(60)")
    return 1.0
"""


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files of this test's own, that a sandbox's unused user can reach."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("backend", ["landlock", "ns"])
async def test_a_killed_reward_leaves_no_process_and_no_file_of_its_sandboxes(backend, temp, tmp_path):
    await require_backend(backend)
    before = family()
    file = tmp_path / "grader.py"
    file.write_text(GRADER.format(backend=backend))
    reward = resolve_reward(f"{file}:compute_score", JUDGE)
    assert isinstance(reward, UserReward)
    await reward.start()
    scoring = asyncio.create_task(reward.score([sample("1")], timeout_s=4.0))
    seen = set[str]()
    while not scoring.done():
        seen |= set(os.listdir(temp))
        await asyncio.sleep(0.05)
    ended = time.monotonic()
    (score,) = await scoring
    assert score.error_kind == "timeout"
    assert any(name.startswith("whetstone-box-") for name in seen) == (backend == "landlock")
    await reward.close()
    assert time.monotonic() - ended < 3
    assert family() - before == set()
    assert os.listdir(temp) == []
