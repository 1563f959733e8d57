"""Rewards: how well an episode went. A reward is a function of the episode and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from envs.episode import Episode, RewardFn, Score
from envs.names import nearest, unknown_name
from envs.registry import EnvDefinition
from envs.splits import Split, task_seed
from rewards.forms import (
    DOES_NOT_APPLY,
    Form,
    RewardBugError,
    Sample,
    group_reward,
    of_episodes,
    score_here,
    then,
)
from rewards.scoring import Facts, UserReward, inspect_reward, missing_columns, with_success
from rewards.weighted import weighted

if TYPE_CHECKING:
    from rewards.judge_asking import OwnPolicy

__all__ = [
    "DOES_NOT_APPLY",
    "Reward",
    "RewardBugError",
    "RewardFn",
    "Sample",
    "Score",
    "Scorer",
    "group_reward",
    "resolve_reward",
    "score_episode",
    "shuffle_scores",
    "weighted",
]

_SHUFFLED = "shuffled:"
LEARNED = "reward_model:"
"""What the name of a learned reward begins with; the folder or hub id of its model follows."""
JUDGED = "judge:"
"""What the name of a judge begins with; its file follows."""


class Scorer(Protocol):
    """A reward as a rollout worker has it: `start` once, `score` as often as one likes, `close`."""

    @property
    def name(self) -> str: ...
    @property
    def shuffled(self) -> bool: ...
    @property
    def is_group(self) -> bool:
        """Whether the scorable members of a group must be given together."""
        ...

    async def start(self) -> None: ...
    async def score(self, samples: Sequence[Sample], *, timeout_s: float) -> list[Score]:
        """A score for each sample, in order; what could not be scored is *unscored*, never 0."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward by name whose code runs in this process: the environment's own, a learned one, or a judge.

    `shuffled` asks the collector to apply `shuffle_scores` to each batch.
    """

    name: str
    fn: RewardFn
    shuffled: bool = False

    @property
    def form(self) -> Form:
        return self.fn if isinstance(self.fn, Form) else of_episodes(self.name, self.fn)

    @property
    def is_group(self) -> bool:
        return self.form.is_group

    async def start(self) -> None:
        """There is nothing to start."""

    async def score(self, samples: Sequence[Sample], *, timeout_s: float) -> list[Score]:
        """See Scorer. The function runs in a thread, so that a slow one does not hold up the agents."""
        return await score_here(self.form, samples, timeout_s=timeout_s)

    async def close(self) -> None:
        """There is nothing to close."""


def resolve_reward(
    spec: str,
    definition: EnvDefinition,
    *,
    num_workers: int = 1,
    python: str = "",
    own: OwnPolicy | None = None,
    num_steps: int = 0,
) -> Reward | UserReward:
    """The reward that `spec` names; its success is the environment's own where that has one.

    "" or the environment's name: its own score. "file.py:function" or "package.module:function": that one, in
    `num_workers` child processes of the interpreter `python` (empty: of this one); nothing of it is imported
    here, and `check_reward` says whether it can be. `num_steps` is for TRL's trainer_state.
    "reward_model:FOLDER": a learned one (rewards/reward_model.py). "judge:FILE": a judge (rewards/judge.py),
    which may ask `own`, a policy of the caller's; without one such a judge leaves every episode unscored.
    "shuffled:<any of these>": the same, permuted within the batch, the control that must not learn.
    """
    if spec.startswith(_SHUFFLED):
        inner = spec.removeprefix(_SHUFFLED)
        if inner.startswith(_SHUFFLED):
            raise ValueError(f"reward {spec!r} is shuffled twice; write {inner!r}")
        if is_users(inner):
            return _users(inner, definition, num_workers, python, num_steps, shuffled=True)
        reward = cast(Reward, resolve_reward(inner, definition, own=own))
        return replace(reward, name=_SHUFFLED + reward.name, shuffled=True)
    if spec in ("", definition.name):
        return Reward(name=definition.name, fn=definition.score)
    if spec.startswith(LEARNED):
        from rewards.reward_model import (
            reward_model,  # torch and transformers, which other rewards do without
        )

        learned = reward_model(spec.removeprefix(LEARNED))
        return Reward(name=spec, fn=with_success_of(definition.score, learned))
    if spec.startswith(JUDGED):
        from rewards.judge import read_judge_reward  # openai's client and more, which others do without

        judged = read_judge_reward(spec.removeprefix(JUDGED), own)
        return Reward(name=spec, fn=with_success_of(definition.score, judged))
    return _users(spec, definition, num_workers, python, num_steps, shuffled=False)


def is_users(spec: str) -> bool:
    """Whether `spec` names code of the user's own, which runs in child processes."""
    inner = spec.removeprefix(_SHUFFLED)
    return ":" in inner and not inner.startswith((LEARNED, JUDGED))


def default_workers(num_cores: int) -> int:
    """Child processes for a user's reward where nobody says how many."""
    return min(8, num_cores)


def _users(
    spec: str, definition: EnvDefinition, num_workers: int, python: str, num_steps: int, *, shuffled: bool
) -> UserReward:
    where, _, attr = spec.rpartition(":")
    if not where or not attr.isidentifier():
        problem = unknown_name("reward", spec, [definition.name, _SHUFFLED + definition.name])
        raise ValueError(f"{problem}; cannot load {spec!r}: expected 'file.py:name' or 'package.module:name'")
    return UserReward(
        spec,
        definition.score,
        num_workers=num_workers,
        shuffled=shuffled,
        python=python,
        num_steps=num_steps,
    )


NUM_CHECKED = 32
"""Tasks whose columns are looked at."""


async def check_reward(spec: str, definition: EnvDefinition, level: int, python: str = "") -> Facts | None:
    """Raise ValueError where the reward that `spec` names cannot be used on the tasks of `level`.

    A user's own is loaded for it in a child process, of `python` where that is given; what it was found to be
    is returned, None for any other.
    """
    reward = resolve_reward(spec, definition, python=python)
    if python and not isinstance(reward, UserReward):
        raise ValueError(
            f"reward_python = {python!r} has no effect: only a reward of your own runs in child processes; "
            "leave it out"
        )
    if isinstance(reward, UserReward):
        seeds = [task_seed(Split.TRAIN, 0, index) for index in range(NUM_CHECKED)]
        tasks = [definition.make_task(level, seed) for seed in seeds]
        try:
            facts = await inspect_reward(reward.spec, reward.python)
        except ValueError as error:
            names = [definition.name, _SHUFFLED + definition.name]
            if nearest(spec, names) is None:
                raise
            raise ValueError(f"{unknown_name('reward', spec, names)}; {error}") from None
        if problem := missing_columns(reward.spec, facts, tasks):
            raise ValueError(problem)
        return facts
    return None


def with_success_of(env_score: RewardFn, function: RewardFn) -> RewardFn:
    """`function`, its success the environment's own wherever that has one.

    A reward says what is trained for, not what is right: runs with different rewards are judged by one
    measure. A success that the function gives itself is kept as the part "success".
    """
    if function is env_score:
        return function

    def judged(own: Score, episode: Episode) -> Score | Awaitable[Score]:
        if not isinstance(own, Score) or own.value is None:
            return own
        return then(env_score(episode), lambda judge: with_success(own, judge.success))

    def score(episode: Episode) -> Score | Awaitable[Score]:
        return then(function(episode), partial(judged, episode=episode))

    return score


async def score_episode(reward: Scorer, episode: Episode, *, timeout_s: float) -> Score:
    """The reward's Score of one episode; *unscored*, the reason in `error`, when it gave no valid one."""
    (score,) = await reward.score([Sample(episode=episode)], timeout_s=timeout_s)
    return score


def is_overdue(score: Score) -> bool:
    """Whether a Score is unscored because the reward did not finish in its time."""
    return score.value is None and score.error_kind == "timeout"


def shuffle_scores(scores: Sequence[Score], rng: random.Random) -> list[Score]:
    """The values permuted among the scored, at random: the same distribution, and no information.

    Unscored ones stay where they are. Success and parts stay with their trajectory, which did earn them; the
    part "unshuffled" keeps the value that was taken away.
    """
    values = [score.value for score in scores if score.value is not None]
    rng.shuffle(values)
    shuffled = iter(values)
    return [
        score
        if score.value is None
        else replace(score, value=next(shuffled), parts={**score.parts, "unshuffled": score.value})
        for score in scores
    ]
