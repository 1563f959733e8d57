"""pass@k, its intervals, paired differences: arithmetic by hand, definitions, and coverage by simulation."""

from __future__ import annotations

import json
from itertools import combinations
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from envs.episode import Score
from rl.evaluation import (
    Evaluation,
    EvaluationError,
    TaskOutcome,
    count_errors,
    level_result,
    outcome_of,
    read_evaluation,
)
from rl.intervals import Z_95, SuccessRate, wilson_interval
from rl.paired import differences, differing_settings
from rl.pass_at_k import MIN_TASKS, difference_interval, mean_interval, pass_at_k
from tests.tiny import make_group

SETTINGS = {"eval_temperature": 1.0}


def evaluation(rows: dict[str, list[bool | None]], *, env="calc", level=1, settings=SETTINGS) -> Evaluation:
    outcomes = tuple(
        TaskOutcome(task=task, env=env, level=level, solved=tuple(solved)) for task, solved in rows.items()
    )
    return Evaluation(policy={"name": "p"}, settings=settings, versions={"whetstone": "0"}, outcomes=outcomes)


def many(num_tasks: int, num_solved: int, num_samples: int = 1) -> Evaluation:
    rows = {f"t{i}": [i < num_solved] * num_samples for i in range(num_tasks)}
    return evaluation(rows)


# pass@k


def test_pass_at_k_by_hand() -> None:
    # 4 samples, 1 solved: 3 of the 6 pairs hold it; 2 solved: 5 of 6; 0: none; 4: all
    assert pass_at_k(4, np.array([0, 1, 2, 4]), 2).tolist() == pytest.approx([0, 3 / 6, 5 / 6, 1])
    assert pass_at_k(4, np.array([0, 1, 2, 4]), 1).tolist() == pytest.approx([0, 1 / 4, 2 / 4, 1])
    assert pass_at_k(4, np.array([0, 1, 2, 4]), 4).tolist() == pytest.approx([0, 1, 1, 1])


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_pass_at_k_is_the_share_of_sets_of_k_samples_with_a_success(k: int) -> None:
    for num_solved in range(8):
        samples = [True] * num_solved + [False] * (7 - num_solved)
        sets = list(combinations(samples, k))
        share = sum(map(any, sets)) / len(sets)
        assert pass_at_k(7, np.array([num_solved]), k)[0] == pytest.approx(share, abs=1e-15)


def test_pass_at_k_has_no_bias_where_the_plug_in_estimate_has() -> None:
    # n = 4 samples with p = 0.3: the expectation over c of the estimate is 1 - 0.7^2 = 0.51
    counts = np.arange(5)
    chances = np.array([0.2401, 0.4116, 0.2646, 0.0756, 0.0081])
    assert (chances * pass_at_k(4, counts, 2)).sum() == pytest.approx(0.51, abs=1e-12)
    assert (chances * (1 - (1 - counts / 4) ** 2)).sum() == pytest.approx(0.51 - 0.3 * 0.7 / 4, abs=1e-12)


def test_large_numbers_do_not_overflow() -> None:
    assert pass_at_k(10_000, np.array([1]), 5_000)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_beyond_the_samples_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="expected k from 1 to 4"):
        pass_at_k(4, np.array([1]), k)


# Intervals


@pytest.mark.parametrize("num_solved", [0, 1, 20, 63, 64])
def test_one_sample_a_task_gives_wilsons_interval(num_solved: int) -> None:
    (result,) = many(64, num_solved).results([1])
    interval = SuccessRate(num_solved, 64).interval
    assert (result.average.low, result.average.high) == pytest.approx(interval, abs=1e-12)
    assert result.pass_at[1] == result.average


def test_the_effective_number_of_tasks_by_hand() -> None:
    # 40 tasks with 4 samples: 20 at 1/2, 10 at 1/4, 10 at 3/4, and a 0 and a 1 of 1/4 task each: m = 1/2,
    # s² = (20/4 + 10/16 + 90/16 + 1/4) / 40.5 - 1/4 = 0.034; 40 m (1 - m) / s² = 294.5 yes-or-no tasks
    values = np.array([0.5] * 20 + [0.25] * 10 + [0.75] * 10)
    number = 40 * 0.25 / (11.5 / 40.5 - 0.25)
    assert number == pytest.approx(294.5, abs=0.1)
    assert mean_interval(values, 0.25) == pytest.approx(wilson_interval(number / 2, number))


@pytest.mark.parametrize("num_samples", [1, 4, 16])
def test_samples_that_are_all_alike_count_once(num_samples: int) -> None:
    """Sixteen copies of one sample tell no more than the one, whatever a binomial of all would say."""
    once, copied = (level_result(many(64, 40, n).outcomes, [n]) for n in (1, num_samples))
    assert copied.pass_at[num_samples].low == pytest.approx(once.average.low, abs=1e-12)
    assert copied.average.low is not None
    assert once.average.low is not None
    assert abs(copied.average.low - once.average.low) < 0.003  # its pseudo-tasks weigh less


@pytest.mark.parametrize(("num_solved", "edge"), [(0, 0.0), (64, 1.0)])
def test_the_interval_is_not_empty_where_all_tasks_agree(num_solved: int, edge: float) -> None:
    (result,) = many(64, num_solved, num_samples=4).results([1, 4])
    for estimate in (result.average, result.pass_at[4]):
        assert estimate.low is not None
        assert estimate.high is not None
        assert edge in (estimate.low, estimate.high)
        assert estimate.high - estimate.low == pytest.approx(Z_95**2 / (64 + Z_95**2))  # Wilson's at k = 0


def test_a_difference_by_hand() -> None:
    # 30 tasks: 6 better, 2 worse. Bonett and Price: (6+1, 2+1) of 32: 0.125, variance 10/32 - 0.125²
    interval = difference_interval(np.array([1.0] * 6 + [-1.0] * 2 + [0.0] * 22), 1.0)
    half = 1.959963984540054 * sqrt((10 / 32 - 0.125**2) / 32)
    assert interval == pytest.approx((0.125 - half, 0.125 + half))


def test_no_difference_has_an_interval_around_nothing() -> None:
    low, high = difference_interval(np.zeros(512), 1 / 16)
    assert low == -high
    assert 0 < high < 0.002


def test_too_few_tasks_have_no_interval_and_that_is_said() -> None:
    (few,), (enough,) = many(MIN_TASKS - 1, 3).results([1]), many(MIN_TASKS, 3).results([1])
    assert (few.average.low, few.average.high) == (None, None)
    assert "too few tasks" in few.average.text()
    assert enough.average.low is not None


def covered(num_tasks: int, num_samples: int, rate: float, k: int) -> tuple[float, float]:
    """How often the interval holds the truth: of pass@k, and of the difference to a better policy.

    Each task has a success rate of its own, Beta with mean `rate` and correlation 0.2 between two samples of
    a task; the better policy's rate of it is p^0.8.
    """
    rng = np.random.default_rng(num_tasks + num_samples)
    prior = rng.beta(4 * rate, 4 * (1 - rate), 400_000)
    truth = (1 - (1 - prior) ** k).mean()
    better = (1 - (1 - prior**0.8) ** k).mean() - truth
    num_runs = 2000 if num_tasks > 64 else 5000  # Wilson's own interval of 64 has 94.0 % at 1/2
    rates = rng.beta(4 * rate, 4 * (1 - rate), (num_runs, num_tasks))
    by_count = pass_at_k(num_samples, np.arange(num_samples + 1), k)
    values, others = (by_count[rng.binomial(num_samples, p)] for p in (rates, rates**0.8))
    alone = np.array([mean_interval(run, k / num_samples) for run in values])
    pairs = np.array([difference_interval(run, k / num_samples) for run in others - values])
    hits = ((alone[:, 0] <= truth) & (truth <= alone[:, 1])).mean()
    return float(hits), float(((pairs[:, 0] <= better) & (better <= pairs[:, 1])).mean())


@pytest.mark.parametrize("num_tasks", [64, 256])
@pytest.mark.parametrize("rate", [0.2, 0.3, 0.5])
@pytest.mark.parametrize(("num_samples", "k"), [(1, 1), (8, 1), (8, 4)])  # pass@1, avg@8, pass@4
def test_intervals_hold_the_truth_in_95_of_100_cases(
    num_tasks: int, rate: float, num_samples: int, k: int
) -> None:
    coverage, pair_coverage = covered(num_tasks, num_samples, rate, k)
    assert abs(coverage - 0.95) < 0.02
    if (num_tasks, rate, k) == (64, 0.5, 4):  # pass@4 is 0.86: the paired interval is wide (its docstring)
        assert 0.96 < pair_coverage < 0.98
    else:
        assert abs(pair_coverage - 0.95) < 0.02


@pytest.mark.parametrize(
    ("num_tasks", "num_samples", "rate", "k"),
    [
        (256, 1, 0.1, 1),
        (256, 8, 0.8, 1),
        (256, 8, 0.8, 4),
        (256, 16, 0.95, 16),
        (64, 4, 0.05, 1),
        (64, 16, 0.5, 4),
        (64, 8, 0.8, 4),
    ],
)
def test_near_the_edges_intervals_are_wide_rather_than_wrong(
    num_tasks: int, num_samples: int, rate: float, k: int
) -> None:
    coverage, pair_coverage = covered(num_tasks, num_samples, rate, k)
    assert min(coverage, pair_coverage) > 0.93


def test_an_interval_over_samples_would_not() -> None:
    """What clustering is for: Wilson's interval of all samples, as if they were independent."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        solved = rng.binomial(16, rng.beta(2, 2, 128)).sum()
        low, high = SuccessRate(int(solved), 128 * 16).interval
        hits += low <= 0.5 <= high
    assert hits < 800


# Outcomes


def test_an_unscored_episode_is_not_solved_and_is_told() -> None:
    group = make_group(0, [([[1], [2]], 1.0), ([[1], [2]], None), ([[1], [2]], 0.0)])
    outcome = outcome_of(group, "calc", 1)
    assert outcome.solved == (True, None, False)
    result = level_result([outcome], [1, 3])
    assert result.num_unscored == 1
    assert result.average.value == pytest.approx(1 / 3)
    assert result.pass_at[3].value == 1.0
    assert count_errors(group.trajectories) == {"reward": 1}


def test_a_success_below_one_is_not_solved() -> None:
    group = make_group(0, [([[1], [2]], 0.9)])
    assert group.trajectories[0].score == Score(value=0.9, success=0.9, parts={"answer": 0.9, "calls": 2})
    assert outcome_of(group, "calc", 1).solved == (False,)


def test_environments_and_levels_are_told_apart() -> None:
    outcomes = [
        TaskOutcome(task=f"{env}-{level}-{i}", env=env, level=level, solved=(i < solved,))
        for env, level, solved in (("calc", 2, 1), ("grid", 1, 2), ("calc", 1, 3))
        for i in range(4)
    ]
    whole = Evaluation(policy={}, settings={}, versions={}, outcomes=tuple(outcomes))
    found = [(r.env, r.level, r.num_tasks, r.average.value) for r in whole.results([1])]
    assert found == [("calc", 1, 4, 0.75), ("calc", 2, 4, 0.25), ("grid", 1, 4, 0.5)]


def test_more_ks_than_samples_and_unequal_samples_are_refused() -> None:
    with pytest.raises(EvaluationError, match="there are 1 samples a task; give --k up to 1"):
        many(4, 2).results([2])
    with pytest.raises(EvaluationError, match="task b has 1 samples and a 2"):
        evaluation({"a": [True, False], "b": [True]}).results([1])


# Paired


def test_tasks_are_paired_by_id_not_by_place() -> None:
    rows = {f"t{i}": [i % 3 == 0] for i in range(30)}
    better = {task: [solved[0] or task == "t1"] for task, solved in reversed(rows.items())}
    (difference,) = differences(evaluation(better), evaluation(rows), [1])
    assert difference.average.value == pytest.approx(1 / 30)
    # one pair better: (1+1, 0+1) of 32
    half = 1.959963984540054 * sqrt((3 / 32 - (1 / 32) ** 2) / 32)
    assert (difference.average.low, difference.average.high) == pytest.approx((1 / 32 - half, 1 / 32 + half))
    assert difference.pass_at[1] == difference.average


def test_other_tasks_are_refused_by_name() -> None:
    with pytest.raises(EvaluationError, match=r"1 of 3 tasks are only in this \(first t2\)"):
        differences(many(3, 1), many(2, 1), [1])
    elsewhere = evaluation({"t0": [True], "t1": [True]}, level=2)
    with pytest.raises(EvaluationError, match=r"2 of 2 tasks are only in this \(first t0\); 2 of 2 tasks"):
        differences(many(2, 1), elsewhere, [1])


def test_settings_that_differ_are_told() -> None:
    cooler = evaluation({"a": [True]}, settings={"eval_temperature": 0.6})
    lines = differing_settings(evaluation({"a": [True]}), cooler)
    assert lines == ["eval_temperature: 1.0 against 0.6"]


# Files


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = evaluation({"a": [True, None], "b": [False, True]})
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({**written.to_json(), "results": []}))
    assert read_evaluation(path) == written


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:-9], "evaluation.json is no evaluation that can be read"),
        (lambda text: "[1]", "expected the object that scripts.evaluate writes"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2; this version reads format 1"),
        (lambda text: text.replace('"tasks"', '"task"'), "KeyError: 'tasks'"),
        (lambda text: text.replace("[1, 0]", "[1, 7]"), "KeyError: 7"),
        (lambda text: text.replace("[1, 0]", "[]"), "task a has no samples"),
        (lambda text: text.replace('"b"', '"a"'), "task a is there more than once"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change, complaint: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(change(json.dumps(evaluation({"a": [True, False], "b": [False, True]}).to_json())))
    with pytest.raises(EvaluationError) as caught:
        read_evaluation(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
