"""A reward that runs code gets the run's sandbox, and a run without one is refused before it starts."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from envs.sandbox.policy import DEFAULT_POLICY, SandboxPolicy, use_policy
from recipes.calc_grpo import CONFIG
from rewards.base import score_episode
from rewards.scoring import UserReward
from rl.machine import Machine
from rl.sandbox_checks import runs_code, sandbox_facts, sandbox_problems
from rl.validation import ConfigError, validate

POLICY = """
from envs.episode import Score
from envs.sandbox.policy import current_policy

def told(episode):
    return Score(value=0.0, explanation=repr(current_policy()))
"""
RUNS_CODE = """
from rewards.weighted import weighted

def by_running(episode):
    ...
by_running.uses_sandbox = True

def over_lists(completions, **kwargs):
    ...
over_lists.uses_sandbox = True

def plain(episode):
    ...
BOTH = weighted({"a": (by_running, 1.0), "b": (plain, 1.0)})
"""


@pytest.fixture
def config_of(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RUNS_CODE)
    return lambda name, **changes: replace(CONFIG, reward=f"{path}:{name}", **changes)


async def test_a_rewards_child_asks_for_the_sandbox_of_the_process_that_started_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(POLICY)
    policy = SandboxPolicy(backend="ns", min_level=3)
    task = Task(id="t", env="calc", messages=(message("user", "?"),))
    episode = Episode(task=task, transcript=task.messages, stop_reason=StopReason.ANSWERED)
    reward = UserReward(f"{file}:told", lambda episode: Score(value=0.0))
    use_policy(policy)
    try:
        await reward.start()
        assert (await score_episode(reward, episode, timeout_s=30)).explanation == repr(policy)
    finally:
        use_policy(DEFAULT_POLICY)
        await reward.close()


@pytest.mark.parametrize("name", ["by_running", "over_lists", "BOTH"])
def test_a_reward_that_says_that_it_runs_code_has_the_runs_sandbox_settings(config_of, name):
    config = config_of(name)
    assert runs_code(config)
    assert list(sandbox_problems(config)) == []
    assert sandbox_facts(config)["level"] >= config.sandbox_min_level
    (problem,) = sandbox_problems(replace(config, sandbox_min_level=4))
    assert "sandbox_min_level = 4: " in problem


def test_code_tests_say_so_and_a_reward_that_runs_none_has_no_sandbox(config_of):
    assert runs_code(replace(CONFIG, env="coding", reward=""))
    config = config_of("plain", sandbox_min_level=3)
    assert sandbox_facts(config) is None
    with pytest.raises(ConfigError, match="sandbox_min_level has no effect: environment 'calc' runs no code"):
        validate(config, Machine.here())
    from rewards.code_tests import code_tests

    assert code_tests.uses_sandbox


def test_where_there_is_no_sandbox_the_run_is_refused(config_of, monkeypatch):
    monkeypatch.delenv("WHETSTONE_ALLOW_WEAK_SANDBOX", raising=False)
    config = config_of("by_running", sandbox="rlimits")
    assert "WHETSTONE_ALLOW_WEAK_SANDBOX" not in os.environ
    with pytest.raises(ConfigError, match="sandbox = 'rlimits', sandbox_min_level = 2"):
        validate(config, Machine.here())
