"""What is refused of a reward: judges that cannot be asked or do not fit the run, a monitor of nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache

from envs.episode import Episode
from envs.messages import StopReason
from envs.registry import resolve_env
from envs.splits import Split
from rewards.base import JUDGED, check_reward, is_users
from rewards.judge import questions_of
from rewards.judge_asking import label_ids, question_ids
from rewards.judge_file import JudgeSpec, read_judge
from rewards.judge_prompt import pieces_of
from rewards.scoring import Facts
from rl.config import Config
from rl.hacking import MIN_STEPS
from rl.metrics import check_names
from rl.policy_gradient import PolicyGradient
from rollout.renderer import ChatMLRenderer
from rollout.task_stream import TaskStream

NUM_PROBED = 32
"""Tasks of each stream about which the judge's question is rendered."""


def reward_facts(config: Config) -> Facts | None:
    """What the user's reward of a run is; None for a reward of another kind.

    Raises:
        ValueError: the reward cannot be used on the run's tasks (rewards.base.check_reward).
    """
    return _checked(config.reward, config.env, config.level, config.reward_python)


@cache
def _checked(reward: str, env: str, level: int, python: str) -> Facts | None:
    """Looked at once, with the configuration: later askers run in an event loop."""
    return asyncio.run(check_reward(reward, resolve_env(env), level, python))


def judge_of(reward: str) -> JudgeSpec | None:
    """The judge that a reward names, shuffled or not; None for another reward. Raises ValueError."""
    spec = reward.removeprefix("shuffled:")
    return read_judge(spec.removeprefix(JUDGED)) if spec.startswith(JUDGED) else None


def reward_fit_problems(config: Config) -> Iterator[str]:
    """Settings that do not go with the reward, or with each other. Raises ValueError."""
    if config.reward_workers and not is_users(config.reward):
        yield (
            f"reward_workers = {config.reward_workers} has no effect: only a reward of your own runs in "
            "child processes; leave it out"
        )
    yield from _monitor_problems(config)
    yield from _judge_fit_problems(config)


def _monitor_problems(config: Config) -> Iterator[str]:
    """A monitor that can see nothing."""
    if 0 < config.hacking_window < MIN_STEPS:
        yield f"hacking_window = {config.hacking_window}: expected at least {MIN_STEPS} steps, or 0 for none"
    if config.hacking_reference and not config.hacking_window:
        yield "hacking_reference has no effect with hacking_window = 0: there is no monitor; leave it out"
    check_names([config.hacking_reference] if config.hacking_reference else ())


def _judge_fit_problems(config: Config) -> Iterator[str]:
    """A row that finds nothing to learn from, and a promise that no endpoint keeps. Raises ValueError."""
    spec = judge_of(config.reward)
    if spec is None:
        return
    row = config.make_algorithm()
    if isinstance(row, PolicyGradient) and row.adv_estimator == "gdpo" and not row.reward_weights:
        yield (
            f"reward = {config.reward!r} with algorithm {config.algorithm!r}: it learns from the parts of a "
            "reward, and of a judge's only you can say which, as in --reward-weights judge/score 1"
        )
    if spec.endpoint and config.determinism == "exact":
        yield (
            f"reward = {config.reward!r} with determinism = 'exact': a judge behind an endpoint need not say "
            'the same again; use determinism fast, or a judge with policy = "self"'
        )


def judge_problems(config: Config, renderer: ChatMLRenderer) -> Iterator[str]:
    """Questions that cannot be asked about this environment's tasks, or not of this policy."""
    spec = judge_of(config.reward)
    if spec is None:
        return
    streams = [
        TaskStream(env=config.env, level=config.level, run_seed=config.seed, split=split)
        for split in (Split.TRAIN, Split.HELD_OUT)
    ]
    tasks = [task for stream in streams for task in stream.slice(0, NUM_PROBED)]
    without = [task.id for task in tasks if task.answer is None]
    if spec.needs_reference and without:
        yield (
            f"reward = {config.reward!r}: its judge compares with the task's answer, and {without[0]} of "
            f"{config.env} has none; use mode pointwise without {{reference}}, or other tasks"
        )
        return
    if not spec.policy:
        return
    try:
        label_ids(spec.labels, renderer)
    except ValueError as error:
        yield f"reward = {config.reward!r}: {error}"
        return
    lengths = []
    for task in tasks:
        (question, *_) = questions_of(
            spec, Episode(task=task, transcript=(), stop_reason=StopReason.ANSWERED)
        )
        pieces = pieces_of(spec.template, question, max_chars=spec.max_chars)
        lengths.append((len(question_ids(pieces, renderer)), task.id))
    length, task_id = max(lengths)
    if length >= config.context_length:
        yield (
            f"reward = {config.reward!r}: about task {task_id} its judge's question has {length} tokens "
            f"before any answer, and engines take {config.context_length - 1}; shorten the template or "
            f"max_chars, or raise --context-length above {length}"
        )
