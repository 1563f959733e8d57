"""Scores over seeds: arithmetic by hand, and what a simulation says of the intervals."""

from math import comb

import numpy as np
import pytest

from rl.aggregates import (
    Curve,
    area_under_curve,
    bootstrap,
    interquartile_mean,
    mean,
    median_time,
    probability_of_improvement,
    time_to_threshold,
)


def arrays(**scores: list[float]) -> dict[str, np.ndarray]:
    return {env: np.array(values) for env, values in scores.items()}


def test_interquartile_mean_leaves_out_a_quarter_at_each_end():
    # 8 scores: 2 lowest (0, 1) and 2 highest (50, 90) are left out; (2 + 3 + 4 + 7) / 4 = 4
    assert interquartile_mean(np.array([90, 3, 1, 7, 0, 2, 4, 50.0])) == 4.0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.2, 0.9, 0.4, 0.5, 0.6], 0.5),  # floor(5 / 4) = 1 each: (0.4 + 0.5 + 0.6) / 3
        ([0.0, 0.3, 0.9], 0.4),  # floor(3 / 4) = 0: the mean
        ([0.7], 0.7),
    ],
)
def test_interquartile_mean_of_few_cuts_whole_scores_only(scores: list[float], expected: float):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)


def test_a_bootstrap_is_stratified():
    """Every resample has both environments in equal parts: without spread inside them there is none."""
    estimate = bootstrap(arrays(easy=[0.9] * 5, hard=[0.1] * 5), mean)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_bootstrap_is_repeatable_and_its_seed_matters():
    scores = arrays(calc=[0.1, 0.35, 0.4, 0.62, 0.77, 0.8])
    assert bootstrap(scores, seed=3, num=200) == bootstrap(scores, seed=3, num=200)
    assert bootstrap(scores, seed=3, num=200) != bootstrap(scores, seed=4, num=200)


def test_the_bootstrap_of_a_mean_has_students_interval_where_seeds_are_many():
    scores = np.random.default_rng(0).normal(0.5, 0.1, 200)
    estimate = bootstrap({"calc": scores}, mean)
    # Student's table: 1.971957 at 199 degrees, P = 0.975
    half = 1.971957 * scores.std(ddof=1) / np.sqrt(200)
    assert estimate.low == pytest.approx(scores.mean() - half, abs=1e-3)
    assert estimate.high == pytest.approx(scores.mean() + half, abs=1e-3)


@pytest.mark.parametrize(("seeds", "said"), [(1, "1 seed of"), (2, "2 seeds of"), (4, "4 seeds of")])
def test_too_few_seeds_have_no_interval_and_are_said(seeds: int, said: str):
    estimate = bootstrap({"calc": np.linspace(0.1, 0.4, seeds)})
    assert estimate.value is not None
    assert (estimate.low, estimate.high) == (None, None)
    assert said in estimate.reason
    assert said in str(estimate)


def test_three_seeds_of_each_of_two_environments_have_no_interval():
    assert bootstrap(arrays(calc=[0.1, 0.2, 0.3], guess=[0.4, 0.5, 0.6])).low is None


def test_no_scores_have_no_value():
    assert bootstrap({"calc": np.array([])}).value is None


@pytest.mark.parametrize(("num_envs", "num_seeds"), [(1, 5), (2, 4), (2, 5)])
def test_intervals_cover_as_often_as_they_say(num_envs: int, num_seeds: int):
    """Of 600 simulated comparisons 95 % should cover: three standard errors of that are 2.7 %."""
    rng = np.random.default_rng(7)

    def draw() -> dict[str, np.ndarray]:
        return {f"env{i}": rng.beta(8, 2 + 4 * i, num_seeds) for i in range(num_envs)}

    truth = np.mean([interquartile_mean(np.concatenate(list(draw().values()))) for _ in range(20_000)])
    covered = 0
    for seed in range(600):
        estimate = bootstrap(draw(), seed=seed, num=1000)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= truth <= estimate.high
    # five seeds of one environment are a little too few still: 0.93
    assert 0.95 - 0.027 - (0.02 if num_envs == 1 else 0) <= covered / 600 <= 0.95 + 0.027


def test_probability_of_improvement_pairs_by_seed_and_counts_ties_half():
    # calc: 0.5 > 0.4, 0.3 = 0.3, 0.2 < 0.6; guess: three wins. (4 + 1/2) / 6
    ours = arrays(calc=[0.5, 0.3, 0.2], guess=[0.9, 0.9, 0.9])
    theirs = arrays(calc=[0.4, 0.3, 0.6], guess=[0.1, 0.2, 0.3])
    assert probability_of_improvement(ours, theirs).value == pytest.approx(4.5 / 6)
    # unpaired, each of ours against each of theirs, calc would give 1/9 + ... : order matters
    shuffled = arrays(calc=[0.2, 0.5, 0.3], guess=[0.9, 0.9, 0.9])
    assert probability_of_improvement(shuffled, theirs).value == pytest.approx(4 / 6)


def test_its_interval_is_clopper_and_pearsons():
    ours, theirs = arrays(calc=[1.0] * 8 + [0.0] * 2), arrays(calc=[0.5] * 10)
    estimate = probability_of_improvement(ours, theirs)
    # 8 of 10: 0.4439 to 0.9748, as tabulated
    assert (estimate.low, estimate.high) == pytest.approx((0.4439, 0.9748), abs=5e-5)
    assert estimate.low is not None
    at_low = sum(comb(10, k) * estimate.low**k * (1 - estimate.low) ** (10 - k) for k in range(8, 11))
    assert at_low == pytest.approx(0.025, abs=1e-9)


def test_its_interval_mirrors_when_the_two_change_places():
    ours, theirs = (
        arrays(calc=[0.3, 0.2, 0.6, 0.9, 0.5, 0.4, 0.7]),
        arrays(calc=[0.3, 0.1, 0.7, 0.1, 0.1, 0.1, 0.1]),
    )
    there, back = probability_of_improvement(ours, theirs), probability_of_improvement(theirs, ours)
    assert there.low is not None
    assert back.high == pytest.approx(1 - there.low)
    assert back.value == pytest.approx(1 - (there.value or 0))


@pytest.mark.parametrize(("num", "has_interval"), [(5, False), (6, True)])
def test_six_pairs_that_agree_are_the_fewest_that_say_anything(num: int, has_interval: bool):
    estimate = probability_of_improvement(arrays(calc=[0.9] * num), arrays(calc=[0.1] * num))
    assert estimate.value == 1.0
    if has_interval:
        assert estimate.low == pytest.approx(0.025 ** (1 / 6))  # p^6 = 0.025
        assert estimate.low > 0.5
    else:
        assert estimate.low is None
        assert "5 pairs" in estimate.reason


def test_ties_alone_say_nothing():
    same = arrays(calc=[0.5] * 10)
    estimate = probability_of_improvement(same, same)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_the_same_algorithm_twice_is_told_apart_in_at_most_one_of_twenty():
    """Success of 128 held-out tasks, which ties now and then."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(400):
        a, b = ({e: rng.binomial(128, 0.7, 5) / 128 for e in ("calc", "guess")} for _ in range(2))
        estimate = probability_of_improvement(a, b)
        assert estimate.low is not None
        assert estimate.high is not None
        found += not estimate.low <= 0.5 <= estimate.high
    assert found / 400 <= 0.05


def test_scores_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="2 of calc and 1 of calc"):
        probability_of_improvement(arrays(calc=[0.1, 0.2]), arrays(calc=[0.1]))


CURVE = Curve(np.array([0.0, 100.0, 300.0]), np.array([0.2, 0.6, 0.8]))


def test_area_under_a_curve_is_mean_success_over_the_budget():
    # trapezoids: 100 * (0.2 + 0.6) / 2 + 200 * (0.6 + 0.8) / 2 = 40 + 140; / 300 = 0.6
    assert area_under_curve(CURVE, 300) == pytest.approx(0.6)


def test_area_ends_at_the_budget_though_the_last_step_went_beyond():
    # at 200 success is 0.7: 40 + 100 * (0.6 + 0.7) / 2 = 105; / 200 = 0.525
    assert area_under_curve(CURVE, 200) == pytest.approx(0.525)


def test_a_curve_that_is_shorter_than_the_budget_has_no_area():
    assert area_under_curve(CURVE, 301) is None


def test_time_to_threshold_lies_between_evaluations():
    # 0.7 lies halfway between 0.6 at 100 and 0.8 at 300
    assert time_to_threshold(CURVE, 0.7) == pytest.approx(200)
    assert time_to_threshold(CURVE, 0.6) == pytest.approx(100)
    assert time_to_threshold(CURVE, 0.8) == pytest.approx(300)
    assert time_to_threshold(CURVE, 0.2) == 0
    assert time_to_threshold(CURVE, 0.1) == 0
    assert time_to_threshold(CURVE, 0.81) is None


def test_time_to_threshold_is_the_first_crossing():
    falls_again = Curve(np.array([0.0, 100.0, 200.0, 300.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert time_to_threshold(falls_again, 0.5) == pytest.approx(50)


@pytest.mark.parametrize(
    ("times", "expected"),
    [([10.0, 30.0, None], 30.0), ([10.0, None, None], None), ([10.0, 20.0], 15.0), ([], None)],
)
def test_a_seed_that_never_got_there_is_later_than_any(times: list[float | None], expected: float | None):
    assert median_time(times) == expected


def test_a_curve_whose_tokens_do_not_rise_is_refused():
    with pytest.raises(ValueError, match="tokens that rise"):
        Curve(np.array([0.0, 5.0, 5.0]), np.array([0.1, 0.2, 0.3]))


def test_a_curve_goes_straight_between_evaluations_and_ends():
    at = CURVE.at(np.array([0.0, 50.0, 200.0, 400.0]))
    assert at[:3] == pytest.approx([0.2, 0.4, 0.7])
    assert np.isnan(at[3])
