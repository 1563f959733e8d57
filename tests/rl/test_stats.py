import pytest

from rl.intervals import SuccessRate, verdict, wilson_interval


def test_wilson_interval_is_the_worked_example():
    # n = 10, k = 5, z = 1.96: z² = 3.8416, shrink = 1.38416
    # center = (0.5 + 0.19208) / 1.38416 = 0.5
    # half = 1.96 * sqrt(0.025 + 0.009604) / 1.38416 = 1.96 * 0.1860215 / 1.38416 = 0.2634108
    low, high = wilson_interval(5, 10, z=1.96)
    assert (low, high) == pytest.approx((0.2365892, 0.7634108), abs=1e-6)


def test_wilson_interval_of_no_success_ends_at_z_squared_over_n_plus_z_squared():
    # k = 0: high = (z²/2n + z²/2n) / (1 + z²/n) = z² / (n + z²) = 3.841459 / 259.841459 = 0.01478386
    low, high = wilson_interval(0, 256)
    assert low == 0.0
    assert high == pytest.approx(0.01478386, abs=1e-7)


def test_wilson_interval_mirrors_when_success_and_failure_change_places():
    low, high = wilson_interval(256, 256)
    assert high == 1.0
    assert low == pytest.approx(1 - 0.01478386, abs=1e-7)


@pytest.mark.parametrize(("num_successes", "num_tasks"), [(1, 0), (-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(num_successes: int, num_tasks: int):
    with pytest.raises(ValueError, match="num_successes"):
        SuccessRate(num_successes, num_tasks)


def test_a_clear_rise_passes():
    # 102/256 = 0.398, 95 % up to 0.4595; 230/256 = 0.898, 95 % from 0.8556; gain 128/256
    result = verdict(SuccessRate(102, 256), SuccessRate(230, 256), min_gain=0.3)
    assert result.passed
    assert result.gain == 0.5


def test_a_gain_of_exactly_the_minimum_passes_although_floats_say_less():
    assert 0.7 - 0.4 < 0.3
    assert verdict(SuccessRate(400, 1000), SuccessRate(700, 1000), min_gain=0.3).passed


def test_a_gain_below_the_minimum_fails_with_the_gain_as_its_reason():
    result = verdict(SuccessRate(400, 1000), SuccessRate(699, 1000), min_gain=0.3)
    assert not result.passed
    assert "+0.299 is below 0.3" in result.reason


def test_overlapping_intervals_fail_however_large_the_gain():
    # 2/5: 0.1176 to 0.7693; 4/5: 0.3755 to 0.9638. The gain is 0.4, but nothing is known.
    result = verdict(SuccessRate(2, 5), SuccessRate(4, 5), min_gain=0.3)
    assert not result.passed
    assert "overlap" in result.reason


def test_a_clear_fall_fails_even_without_a_minimum():
    assert not verdict(SuccessRate(230, 256), SuccessRate(102, 256), min_gain=0.0).passed
