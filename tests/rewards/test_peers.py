"""Reward functions of TRL and verl, unmodified from their packages, in an environment of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from envs.tasks.calc import ENV
from rewards.base import Sample, resolve_reward
from scripts._venv import Offline
from scripts.peers import PYTHON, ROOT, bring_up
from tests.finished_run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

JUDGE = replace(ENV, score=lambda episode: Score(value=0.0))
SAID = (
    "#### 1,234",
    "it is 1234.",
    "#### 12",
    "<think>\nhm\n</think>\n#### 1234",
    "<think>never closed",
    "",
)
NUM_TOKENS = (1, 7, 8, 9, 10, 30)

FLEXIBLE = """
from verl.utils.reward_score.gsm8k import compute_score
from rewards.adapters import from_verl

flexible = from_verl(compute_score, method="flexible")
"""
OVERLONG = """
from trl.rewards import get_soft_overlong_punishment

overlong = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
"""

DIRECT = """
import json, sys
from trl.rewards import get_soft_overlong_punishment, think_format_reward
from verl.utils.reward_score.gsm8k import compute_score
said, lengths = json.loads(sys.argv[1])
print(json.dumps({
    "strict": [compute_score(text, "1234") for text in said],
    "flexible": [compute_score(text, "1234", method="flexible") for text in said],
    "think": think_format_reward([[{"role": "assistant", "content": text}] for text in said]),
    "overlong": get_soft_overlong_punishment(10, 4)([[0] * length for length in lengths]),
}))
"""


@pytest.fixture(scope="module")
def peers() -> str:
    try:
        bring_up()
    except Offline as offline:
        pytest.skip(str(offline))
    return str(PYTHON)


@pytest.fixture(scope="module")
def direct(peers: str) -> dict[str, list[float]]:
    """What the functions return when nothing of ours calls them."""
    command = [peers, "-c", DIRECT, json.dumps([SAID, NUM_TOKENS])]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def samples() -> list[Sample]:
    task = Task(id="t", env="calc", messages=(message("user", "?"),), answer="1234")
    return [
        Sample(
            episode=Episode(
                task=task,
                transcript=(*task.messages, message("assistant", text)),
                stop_reason=StopReason.ANSWERED,
            ),
            token_ids=tuple(range(length)),
        )
        for text, length in zip(SAID, NUM_TOKENS, strict=True)
    ]


async def values(spec: str, python: str, batch: Sequence[Sample]) -> list[float | None]:
    reward = resolve_reward(spec, JUDGE, python=python)
    await reward.start()
    try:
        return [score.value for score in await reward.score(batch, timeout_s=30)]
    finally:
        await reward.close()


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("strict", "verl.utils.reward_score.gsm8k:compute_score"),
        ("flexible", "{folder}/mine.py:flexible"),
        ("think", "trl.rewards:think_format_reward"),
        ("overlong", "{folder}/mine.py:overlong"),
    ],
)
async def test_a_peers_function_scores_as_when_it_is_called_directly(tmp_path, peers, direct, name, spec):
    (tmp_path / "mine.py").write_text({"flexible": FLEXIBLE, "overlong": OVERLONG}.get(name, ""))
    found = await values(spec.format(folder=tmp_path), peers, samples())
    assert found == direct[name]
    assert len(set(found)) > 1  # right and wrong ones are among them


@pytest.mark.extra
def test_calc_trains_with_verls_scorer_of_gsm8k(tmp_path: Path, peers: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FLEXIBLE)
    options = [
        "--reward",
        f"{file}:flexible",
        "--reward-python",
        peers,
        "--num-steps",
        "2",
        "--eval-tasks",
        "8",
    ]
    finished = run_recipe(tmp_path / "run", options, timeout_s=450)
    assert finished.code == 0, finished.screen
    assert "SMOKE RUN SOUND" in finished.screen
    assert [step["reward/errors"] for step in finished.metrics] == [0, 0]
    scored = [record.trajectory.score for record in finished.records]
    assert {score.value for score in scored} == {0.0, 1.0}
    # Both look for the last number of the answer; the environment also wants it to be all of the answer.
    assert all(score.value == 1.0 for score in scored if score.success == 1.0)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["inputs"].keys() >= {"reward", "reward_python"}


def test_the_environment_of_peers_is_made_once(peers: str) -> None:
    assert bring_up() is False
    assert (ROOT / ".venv-peers").is_dir()
