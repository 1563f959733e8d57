"""Math answers: equal is equal however it is written, hedging is wrong, and nothing hangs or runs."""

import time

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from rewards.base import is_users, score_episode
from rewards.math_answer import math_answer
from rewards.scoring import UserReward

NAME = "rewards.math_answer:math_answer"


def episode(reference, answer):
    task = Task(id="t-7", env="calc", messages=(message("user", "?"),), answer=reference)
    return Episode(
        task=task, transcript=(*task.messages, message("assistant", answer)), stop_reason=StopReason.ANSWERED
    )


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("42", "42"),
        ("1/2", "The answer is \\boxed{0.5}."),
        ("\\frac{1}{2}", "so $\\frac12$"),
        ("$x^2+1$", "$1+x^2$"),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
        ("(3, 4)", "\\boxed{(3,4)}"),
        ("\\boxed{\\sqrt{8}}", "$2\\sqrt{2}$"),
        ("1,000", "1000"),
        ("B", "\\boxed{B}"),
    ],
)
def test_what_is_equal_is_right_however_it_is_written(reference, answer):
    score = math_answer(episode(reference, answer))
    assert (score.value, score.success) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("42", "41"),
        ("42", ""),
        ("42", "no idea"),
        ("42", "$\\frac{$"),
        ("42", "\\boxed{41} \\boxed{42}"),  # hedging
        ("42", "\\boxed{41,42}"),
        ("42", "the answer is 41 or 42"),
        ("42", "\\boxed{x}"),
        ("(3, 4)", "4"),
        ("42", "42" + " and so on" * 1000),  # not at its end
    ],
)
def test_what_is_not_equal_hedged_or_unreadable_is_zero(reference, answer):
    score = math_answer(episode(reference, answer))
    assert (score.value, score.success) == (0.0, 0.0)


@pytest.mark.parametrize("reference", [None, "", "\\frac{", "$\\frac{$"])
def test_a_reference_that_cannot_be_read_is_unscored_and_names_the_task(reference):
    score = math_answer(episode(reference, "42"))
    assert score.value is None
    assert "task t-7" in (score.error or "")


HUGE = [
    "$9^{9^9}$",
    "$9^{9^{9^9}}$",
    "\\boxed{(10^9)!}",
    "\\(99999!\\)",
    "$3!!!!$",
    "10^{3e9}",
    "$10^{3e9}$",
    "$10^{-3e9}$",
    "2^{2^{33}}",
    "2**2**33",
    "$2^10000000$",
    "$((2^{99})^{99})^{99}$",
    "$9^{x^{9^{9}}}$",
    "7" * 1500,
    "1e99999999",
    "$\\binom{1000000000}{500000000}$",
    "$\\sum_{k=1}^{1000000000} \\frac{1}{k}$",
    "{" * 2000 + "1",
]


@pytest.mark.alone
@pytest.mark.parametrize("answer", HUGE)
def test_numbers_beyond_the_bounds_are_zero_before_anything_is_computed(answer):
    started = time.monotonic()
    score = math_answer(episode("42", f"I think it is {answer}"))
    assert (score.value, score.success) == (0.0, 0.0)
    assert score.explanation == "not compared: its numbers are too large"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("2^{2024}", "$2^{2024}$"),
        ("2^{2024}+1", "\\boxed{1+2^{2024}}"),
        ("100!", "$100!$"),
        ("5x^{2024}", "$5x^{2024}$"),
        ("e^{x^2}", "$e^{x^{2}}$"),
        ("123456789", "the answer is \\boxed{123456789}!"),
        ("123456789", "the answer is 123456789!"),
        ("42", "First 1234567890 + 987654321 (see 12345678, 123456789). " * 50 + "So $42$"),
        ("10^{100}", "$10^{100}$"),
        ("500500", "$\\sum_{k=1}^{1000} k$ is \\boxed{500500}"),
        ("\\binom{10}{5}", "252"),
    ],
)
def test_large_but_ordinary_answers_are_compared(reference, answer):
    assert math_answer(episode(reference, answer)).value == 1.0


async def test_it_runs_in_a_child_process_where_what_hangs_is_killed(tmp_path):
    assert is_users(NAME)
    reward = UserReward(NAME, lambda episode: Score(value=0.0))
    witness = tmp_path / "run"
    await reward.start()
    try:
        assert (await score_episode(reward, episode("1/2", "0.5"), timeout_s=60)).value == 1.0
        started = time.monotonic()
        hung = await score_episode(reward, episode("42", "$(x+y+z)^{3000}$"), timeout_s=3)
        assert time.monotonic() - started < 10
        assert (hung.value, hung.error_kind) == (None, "timeout")
        code = await score_episode(reward, episode("42", f"open({str(witness)!r}, 'w')"), timeout_s=60)
        assert (code.value, witness.exists()) == (0.0, False)
    finally:
        await reward.close()
