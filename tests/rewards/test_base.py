import asyncio
import math
import random
import sys
import time
from dataclasses import replace

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from envs.tasks.calc import ENV
from rewards.base import (
    DOES_NOT_APPLY,
    Reward,
    Sample,
    check_reward,
    group_reward,
    resolve_reward,
    score_episode,
    shuffle_scores,
    weighted,
    with_success_of,
)

EPISODE = Episode(
    task=Task(id="t", env="calc", messages=(message("user", "1+2"),)),
    transcript=(message("user", "1+2"), message("assistant", "3")),
    stop_reason=StopReason.ANSWERED,
)


JUDGE = replace(ENV, score=lambda episode: Score(value=0.0, success=1.0))


def fixed(value: float | None, **fields):
    return lambda episode: Score(value=value, **fields)


async def scored(fn, timeout_s: float = 5.0) -> Score:
    return await score_episode(Reward(name="r", fn=fn), EPISODE, timeout_s=timeout_s)


async def test_a_valid_score_passes_unchanged():
    score = Score(value=-0.5, parts={"a": 1}, success=0.0)
    assert await scored(lambda episode: score) is score


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (fixed(math.nan), "Score.value is nan, expected a finite number"),
        (fixed(-math.inf), "Score.value is -inf, expected a finite number"),
        (fixed(True), "Score.value is True, expected a finite number"),
        (fixed("1.0"), "Score.value is '1.0', expected a finite number"),
        (fixed(1.0, parts={"a": math.nan}), "Score.parts['a'] is nan, expected a finite number"),
        (fixed(1.0, success=math.inf), "Score.success is inf, expected a finite number"),
        (fixed(None), "returned a Score of value None without saying why in its error"),
        (fixed(None, error="judge is offline"), "judge is offline"),
        (lambda episode: 1.0, "returned float, expected a Score"),
        (lambda episode: None, "returned NoneType, expected a Score"),
    ],
)
async def test_what_is_no_finite_score_is_unscored_and_never_zero(fn, error):
    kind = "world" if error == "judge is offline" else "invalid"
    assert await scored(fn) == Score(value=None, error=f"reward r: {error}", error_kind=kind)


async def test_a_raising_reward_is_unscored_with_the_line_that_raised():
    def bad(episode):
        return {}["answer"]

    score = await scored(bad)
    assert score.value is None
    assert score.error.startswith("reward r: KeyError: 'answer' (")
    first, *trace = score.error.splitlines()
    assert first.endswith('in bad: return {}["answer"])')
    assert "test_base.py:" in first
    assert trace[0].startswith("Traceback")
    assert [line for line in trace if "rewards/" in line and "test_base.py" not in line] == []
    assert score.error_kind == "exception"


async def test_a_reward_that_exits_does_not_end_the_run():
    score = await scored(lambda episode: sys.exit(3))
    assert score.value is None
    assert "SystemExit: 3" in score.error


@pytest.mark.alone
async def test_a_hung_reward_is_unscored_at_its_deadline():
    start = time.monotonic()
    score = await scored(lambda episode: time.sleep(3), timeout_s=0.1)
    assert time.monotonic() - start < 2
    assert score.value is None
    assert score.error == "reward r: no result after 0.1 s"
    assert score.error_kind == "timeout"


async def test_an_async_reward_is_awaited_and_has_the_same_deadline():
    async def fine(episode):
        await asyncio.sleep(0)
        return Score(value=0.5)

    async def hung(episode):
        await asyncio.sleep(60)

    assert await scored(fine) == Score(value=0.5)
    assert (await scored(hung, timeout_s=0.05)).error_kind == "timeout"


def test_a_weighted_sum_logs_each_value_by_name():
    reward = weighted(
        {
            "right": (fixed(1.0, parts={"answer": 1.0}, success=1.0), 2.0),
            "short": (fixed(-0.5), 0.5),
            "style": (fixed(0.25), 0.0),
        }
    )
    # 2 * 1 + 0.5 * -0.5 + 0 * 0.25 = 1.75
    assert reward(EPISODE) == Score(
        value=1.75, parts={"right": 1.0, "right/answer": 1.0, "short": -0.5, "style": 0.25}, success=1.0
    )


def test_success_needs_every_component_that_reports_it():
    one, zero, silent = fixed(1.0, success=1.0), fixed(1.0, success=0.0), fixed(1.0)
    assert weighted({"a": (one, 1), "b": (silent, 1)})(EPISODE).success == 1.0
    assert weighted({"a": (one, 1), "b": (zero, 1)})(EPISODE).success == 0.0
    assert weighted({"a": (silent, 1)})(EPISODE).success is None


def test_one_unscored_component_makes_the_whole_unscored():
    reward = weighted({"right": (fixed(1.0), 1.0), "judge": (fixed(None, error="offline"), 0.0)})
    assert reward(EPISODE) == Score(value=None, error="judge: reward judge: offline", error_kind="world")


@group_reward
async def rank(episodes):
    return [Score(value=float(place)) for place in range(len(episodes))]


async def test_a_weighted_sum_takes_sync_and_async_of_episodes_and_of_groups():
    async def later(episode):
        return Score(value=10.0)

    def trl(completions, **kwargs):
        return [None if place else 100.0 for place in range(len(completions))]

    reward = weighted({"now": (fixed(1.0), 1), "later": (later, 1), "rank": (rank, 1), "trl": (trl, 1)})
    assert reward.is_group
    first, second = await reward.score([Sample(episode=EPISODE)] * 2)
    # 1 + 10 + 0 + 100; what does not apply to the second (TRL's None) is left out of its sum: 1 + 10 + 1
    assert (first.value, second.value) == (111.0, 12.0)
    assert second.parts == {"now": 1.0, "later": 10.0, "rank": 1.0}
    assert weighted({"trl": (trl, 1)}).score([Sample(episode=EPISODE)] * 2)[1] == DOES_NOT_APPLY


def test_weights_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="given no rewards"):
        weighted({})
    with pytest.raises(ValueError, match="reward 'a' has weight nan"):
        weighted({"a": (fixed(1.0), math.nan)})


def test_shuffling_permutes_the_scored_values_only():
    scores = [
        Score(value=None, error="lost")
        if i % 5 == 0
        else Score(value=float(i), success=float(i % 2), parts={"p": i})
        for i in range(40)
    ]
    shuffled = shuffle_scores(scores, random.Random(0))
    assert sorted(s.value for s in shuffled if s.value is not None) == [i for i in range(40) if i % 5]
    assert sum(a.value != b.value for a, b in zip(scores, shuffled, strict=True)) > 24
    for before, after in zip(scores, shuffled, strict=True):
        assert (before.value is None) == (after.value is None)
        assert (before.success, before.error) == (after.success, after.error)
        if before.value is not None:
            assert after.parts == {"p": before.parts["p"], "unshuffled": before.value}
    assert shuffle_scores(scores, random.Random(0)) == shuffled
    assert shuffle_scores(scores, random.Random(1)) != shuffled


def test_the_environments_own_score_is_the_default():
    assert resolve_reward("", ENV) == resolve_reward("calc", ENV) == Reward(name="calc", fn=ENV.score)
    assert resolve_reward("shuffled:calc", ENV) == Reward(name="shuffled:calc", fn=ENV.score, shuffled=True)
    assert resolve_reward("shuffled:", ENV).name == "shuffled:calc"


@pytest.mark.parametrize(
    ("own", "judged"),
    [
        (Score(value=0.5), Score(value=0.5, success=1.0)),
        (Score(value=0.5, success=0.0), Score(value=0.5, success=1.0, parts={"success": 0.0})),
        (Score(value=None, error="offline"), Score(value=None, error="offline")),
        (0.5, 0.5),  # which `score_episode` refuses
    ],
)
def test_what_is_a_success_is_the_environments_to_say(own, judged):
    assert with_success_of(JUDGE.score, lambda episode: own)(EPISODE) == judged
    silent = with_success_of(fixed(1.0), lambda episode: own)
    assert silent(EPISODE) == own


async def test_the_environments_own_score_may_be_async():
    async def judge(episode):
        return Score(value=0.0, success=1.0)

    assert await with_success_of(judge, fixed(0.5))(EPISODE) == Score(value=0.5, success=1.0)
    env = resolve_reward("", replace(ENV, score=judge))
    assert await score_episode(env, EPISODE, timeout_s=5) == Score(value=0.0, success=1.0)


async def test_a_users_function_resolves_from_a_file_and_a_module(tmp_path):
    file = tmp_path / "my_rewards.py"
    file.write_text("from envs.episode import Score\ndef half(episode): return Score(value=0.5)\nN = 3\n")
    reward = resolve_reward(f"shuffled:{file}:half", JUDGE)
    assert reward.shuffled
    assert await score_episode(reward, EPISODE, timeout_s=5) == Score(value=0.5, success=1.0)
    await reward.close()
    await check_reward("envs.tasks.calc:score", ENV, 1)
    with pytest.raises(ValueError, match=r"my_rewards\.py: unknown name 'halv'; did you mean 'half'\?"):
        await check_reward(f"{file}:halv", ENV, 1)
    with pytest.raises(ValueError, match="reward 'N' is a int; expected a function"):
        await check_reward(f"{file}:N", ENV, 1)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            "cacl",
            "did you mean 'calc'? (known: calc, shuffled:calc); cannot load 'cacl': expected 'file.py:name'",
        ),
        ("shufled:calc", "unknown reward 'shufled:calc'; did you mean 'shuffled:calc'?"),
        ("shuffled:shuffled:calc", "is shuffled twice; write 'shuffled:calc'"),
    ],
)
async def test_a_wrong_reward_is_refused(spec, complaint):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole, not as a pattern
        await check_reward(spec, ENV, 1)
    assert complaint in str(caught.value)
