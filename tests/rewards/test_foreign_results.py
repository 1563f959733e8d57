"""What functions of other libraries may return: whatever it is, it costs no more than its own sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from envs.base import EngineRequestError, JudgeError, WorldError
from envs.episode import Score
from envs.sandbox.base import SandboxError
from rewards.adapters import adapt, from_file, from_trl, from_verl
from rewards.failures import MAX_VALUE
from rewards.scoring import Facts, missing_columns
from rewards.weighted import weighted
from tests.rewards.test_adapters import FILES, sample, scores


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")


class Dishonest:
    @property
    def tolist(self) -> Any:
        raise RuntimeError("no list")


CIRCLE: dict[str, Any] = {"score": 1.0}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    "result",
    [
        {"score": 1.0, "log": {(1, 2): 3}},
        CIRCLE,
        Silent(),
        {"score": Silent()},
        {"score": 1.0, "log": Silent()},
        Dishonest(),
        MAX_VALUE * 1.01,
        -(10**400),
        float("-inf"),
    ],
)
async def test_a_result_that_cannot_be_read_or_learned_from_is_invalid(result):
    def of_verl(solution_str, ground_truth):
        return result

    def of_trl(completions):
        return [1.0, result]

    (score,) = await scores(adapt(of_verl), sample(id="s-7"))
    assert (score.value, score.error_kind) == (None, "invalid")
    assert "reward of_verl on s-7: " in score.error
    first, second = await scores(adapt(of_trl), sample(), sample(id="s-8"))
    assert (first.value, second.value, second.error_kind) == (1.0, None, "invalid")


async def test_what_is_logged_and_cannot_be_written_down_is_invalid_too():
    def reward(completions, log_extra, **kwargs):
        log_extra("note", [Silent(), "fine"])
        return [1.0, 2.0]

    first, second = await scores(adapt(reward), sample(), sample())
    assert (first.error_kind, second.value) == ("invalid", 2.0)


async def test_an_exception_that_cannot_be_told_is_still_an_exception():
    def reward(episode):
        raise Untellable

    (score,) = await scores(adapt(reward), sample())
    assert score.error_kind == "exception"
    assert "Untellable, whose message raises RuntimeError" in score.error


@pytest.mark.parametrize("value", [MAX_VALUE, -MAX_VALUE, 0, 1e-9])
async def test_the_largest_values_that_count_do(value):
    (score,) = await scores(from_verl(lambda solution_str, ground_truth: value), sample())
    assert score.value == value


async def test_a_part_or_a_sum_beyond_the_largest_value_is_invalid():
    def big_part(episode):
        return Score(value=1.0, parts={"n": 2e6})

    def odd_part(episode):
        return Score(value=1.0, parts={(1, 2): 0.5})

    def half(episode):
        return Score(value=0.9e6)

    found = [
        (await scores(form, sample(id="s-9")))[0]
        for form in (adapt(big_part), adapt(odd_part), weighted({"a": (half, 1.0), "b": (half, 1.0)}))
    ]
    assert [score.error_kind for score in found] == ["invalid"] * 3
    assert (
        "reward weighted on s-9: its value is 1800000.0, expected at most 1,000,000 in size" in found[2].error
    )
    (infinite,) = await scores(weighted({"a": (half, 1e308)}), sample())
    assert "its value is inf, expected a finite number" in infinite.error


async def test_what_verl_logs_of_a_number_is_acc():
    (score,) = await scores(from_verl(lambda solution_str, ground_truth: True), sample())
    assert (score.value, score.parts) == (1.0, {"acc": 1.0})


class Lasting(WorldError):
    retryable = False


@pytest.mark.parametrize(
    ("error", "kind", "num_calls"),
    [
        (SandboxError("gone"), "world", 2),
        (EngineRequestError("busy"), "world", 2),
        (Lasting("for ever"), "world", 1),
        (JudgeError("mute"), "judge", 1),
        (ValueError("bug"), "exception", 1),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_world_that_fails_in_scoring_is_told_as_such_and_asked_once_more(
    error, kind, num_calls, is_async
):
    calls = []

    def reward(episode):
        calls.append(episode)
        raise error

    async def later(episode):
        reward(episode)

    (score,) = await scores(adapt(later if is_async else reward, "r"), sample())
    assert (score.value, score.error_kind, len(calls)) == (None, kind, num_calls)


async def test_a_world_that_holds_the_second_time_gives_the_score():
    calls = []

    async def reward(episode):
        calls.append(episode)
        if len(calls) == 1:
            raise SandboxError("gone")
        return Score(value=0.5)

    (score,) = await scores(adapt(reward), sample())
    assert score == Score(value=0.5)


@pytest.mark.parametrize(
    ("components", "complaint"),
    [
        ({"a": 0.0, "b": 0}, "all weights are 0"),
        ({"a": True}, "has weight True; expected a finite number"),
        ({"a": "1"}, "has weight '1'"),
        ({"a": 1.0, "a/b": 1.0}, "the parts of reward 'a' may be named as reward 'a/b' is"),
        ({"success": 1.0}, "cannot be named 'success'"),
    ],
)
def test_weights_without_effect_and_names_that_collide_are_refused(components, complaint):
    with pytest.raises(ValueError, match=complaint):
        weighted({name: (lambda episode: Score(value=1.0), weight) for name, weight in components.items()})


async def test_a_missing_column_leaves_its_sample_alone_unscored():
    def over_lists(completions, level):
        return [float(number) for number in level]

    def alone(episode, level):
        return Score(value=float(level))

    for form in (from_trl(over_lists), adapt(alone)):
        first, second, third = await scores(form, sample(level=1), sample(id="s-2"), sample(level=3))
        assert (first.value, third.value) == (1.0, 3.0)
        assert (second.value, second.error_kind) == (None, "invalid")
        assert "on s-2: takes level, which task t does not have; its columns: answer," in second.error


@pytest.mark.parametrize(
    "function", ["verl.py:compute_score", "verl.py:compute_scores", "openrlhf.py:reward_func"]
)
async def test_no_function_is_asked_about_a_task_without_its_answer(function):
    (score,) = await scores(from_file(f"{FILES}/{function}"), sample(answer=None))
    assert score.error_kind == "invalid"
    assert "which task t does not have" in score.error


async def test_a_verl_rows_own_ground_truth_and_source_are_used():
    seen = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.update(locals())
        return 1.0

    row = {
        "reward_model": {"ground_truth": "7", "style": "rule"},
        "data_source": "gsm8k",
        "extra_info": {"i": 1},
    }
    await scores(adapt(compute_score), sample(answer=None, **row))
    assert (seen["ground_truth"], seen["data_source"], seen["extra_info"]["i"]) == ("7", "gsm8k", 1)


def test_a_column_that_only_one_task_lacks_is_refused_with_that_tasks_id():
    facts = Facts(kind="trl", is_group=True, columns=("level",), can_split=True, uses_sandbox=False, note="")
    has, lacks = sample(level=1).episode.task, replace(sample().episode.task, id="t-9")
    assert missing_columns("f.py:f", facts, [has, has]) is None
    assert "takes level, which task t-9 lacks: " in (missing_columns("f.py:f", facts, [has, lacks]) or "")
