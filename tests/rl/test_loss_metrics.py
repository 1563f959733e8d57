"""What a loss reports, by hand: five tokens in micro-batches of three and two, a mean of means nowhere."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch

from rl.algorithms import get_algorithm
from rl.layout import PaddedLayout
from rl.numerics import (
    add_metrics,
    correlation_share,
    metric_values,
    std_share,
)
from tests.rl.making import evaluate, layout_of

# Row by row, trained tokens alone: three of the first trajectory, one each of two others.
RATIO = (1.5, 0.5, 1.0, 0.5, 4.0)  # π / π_old
OLD = (0.4, 0.4, 0.8, 0.2, 0.2)  # π_old
ENGINE = (0.4, 0.2, 0.2, 0.4, 0.2)  # π_old / engine = 1, 2, 4, 1/2, 1
ADVANTAGE = (2.0, 2.0, 2.0, -1.0, -1.0)
ENTROPY = (0.3, 0.3, 0.3, 1.0, 2.0)
PARTS = (slice(0, 1), slice(1, 3))
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0]]).bool()


def rows(values: tuple[float, ...] | torch.Tensor) -> torch.Tensor:
    """The values at the trained tokens, NaN elsewhere."""
    tokens = torch.full(MASK.shape, torch.nan, dtype=torch.float64)
    tokens[MASK] = torch.as_tensor(values, dtype=torch.float64)
    return tokens


def made() -> tuple[torch.Tensor, PaddedLayout]:
    old = rows(OLD).log()
    policy = old + rows(RATIO).log()
    layout = layout_of(
        MASK,
        old_logprobs=old,
        rollout_logprobs=rows(ENGINE).log(),
        # The reference has half the policy's probability on the first row and all of it elsewhere.
        ref_logprobs=policy - log(2) * torch.tensor([[1.0], [0.0], [0.0]]),
        advantages=rows(ADVANTAGE),
    )
    return policy, layout


def metrics_of(name: str, **knobs: object) -> dict[str, float]:
    policy, layout = made()
    _, _, sums = evaluate(get_algorithm(name, **knobs), policy, layout, splits=PARTS, entropy=rows(ENTROPY))
    return metric_values(sums)


def check(metrics: dict[str, float], expected: dict[str, float]) -> None:
    assert {name: metrics.get(name) for name in expected} == pytest.approx(expected)


def test_ratio_and_clip_metrics():
    # dapo with dual clip: band [0.8, 1.28]. 1.5 with A > 0: high; 0.5 with A > 0: open; 0.5 with A < 0: low;
    # 4 > 3 with A < 0: dual. Σ r = 7.5, Σ r² = 2.25 + 0.25 + 1 + 0.25 + 16 = 19.75; Π r = 1.5
    squares = log(1.5) ** 2 + 2 * log(0.5) ** 2 + log(4) ** 2
    expected = {
        "policy/ratio_mean": 7.5 / 5,  # the mean of the micro-batches' means would be (1 + 2.25) / 2
        "policy/ratio_min": 0.5,
        "policy/ratio_max": 4.0,
        "policy/ess": 7.5**2 / (5 * 19.75),
        "policy/clip_frac_low": 1 / 5,
        "policy/clip_frac_high": 1 / 5,
        "policy/clip_frac_dual": 1 / 5,
        "policy/log_ratio_clamp_frac": 0.0,
        "policy/log_ratio_mean": log(1.5) / 5,
        "policy/log_ratio_std": sqrt(squares / 5 - (log(1.5) / 5) ** 2),
        "policy/approx_kl_k1": -log(1.5) / 5,
        "policy/approx_kl_k3": 7.5 / 5 - 1 - log(1.5) / 5,
    }
    check(metrics_of("dapo", clip_ratio_c=3.0), expected)


def test_advantage_and_entropy_metrics():
    expected = {
        "policy/advantage_mean": 4 / 5,  # (6 - 2) / 5
        "policy/advantage_std": sqrt(14 / 5 - 0.8**2),  # Σ A² = 12 + 2
        "policy/advantage_abs_max": 2.0,
        "policy/advantage_positive_frac": 3 / 5,
        "policy/entropy": 3.9 / 5,
        "policy/nonfinite_token_frac": 0.0,
    }
    check(metrics_of("dapo"), expected)


def test_sampler_against_trainer():
    # w = 1, 2, 4, 1/2, 1: Σ w = 8.5, Σ w² = 22.25, Π w = 4
    expected = {
        "gap/mean": log(4) / 5,
        "gap/abs_mean": 4 * log(2) / 5,  # ln 2 + ln 4 + ln 2
        "gap/abs_max": log(4),
        "gap/k1": -log(4) / 5,
        "gap/k3": 8.5 / 5 - 1 - log(4) / 5,
        "gap/ratio_mean": 8.5 / 5,
        "gap/ratio_min": 0.5,
        "gap/ratio_max": 4.0,
        "gap/ess": 8.5**2 / (5 * 22.25),
        "gap/chi2": 22.25 / 5 - 1,
        # rows: exp(-ln 8 / 3) = 1/2, exp(ln 2) = 2 and 1; the mean of the micro-batches' means would be 1
        "gap/ppl_ratio": 3.5 / 3,
        # Σx 2, Σx² 1.04, Σy 1.4, Σy² 0.44, Σxy 0.52: (5 · 0.52 - 2.8) / √((5.2 - 4) (2.2 - 1.96))
        "gap/correlation": -0.2 / sqrt(1.2 * 0.24),
        "gap/missing_logprob_frac": 0.0,
    }
    check(metrics_of("dapo"), expected)
    check(metrics_of("dapo", rollout_is="none"), expected)  # measured where nothing is corrected, too


def test_in_bypass_mode_too_the_gap_is_between_engine_and_learner_at_one_version():
    # Updates before this one moved π by the ratios 1.5, 0.5, 1, 0.5, 4 from π_old, which was scored with the
    # engine's weights. The gap stays π_old / engine = 1, 2, 4, 1/2, 1; with π it would be 1.5, 1, 4, 1/4, 4.
    metrics = metrics_of("dapo", bypass_mode=True, rollout_is="none")
    gap = {
        "gap/mean": log(4) / 5,
        "gap/abs_mean": 4 * log(2) / 5,
        "gap/ratio_mean": 8.5 / 5,  # with π: 10.75 / 5
        "gap/ratio_max": 4.0,
        "gap/ratio_min": 0.5,  # with π: 1/4
        "gap/k3": 8.5 / 5 - 1 - log(4) / 5,
    }
    check(metrics, gap)
    # What is trained on is the ratio to the engine, π / engine.
    check(metrics, {"policy/ratio_mean": 10.75 / 5, "policy/ratio_min": 0.25})


@pytest.mark.parametrize(
    ("knobs", "weights", "capped", "masked"),
    [
        # cut at 3: 1, 2, 3, 1/2, 1
        ({"rollout_is_threshold": 3.0}, (1, 2, 3, 0.5, 1), (1 / 5, 1 / 3), (0, 0)),
        # kept in [0.6, 3]: 1, 2, 0, 0, 1
        (
            {
                "rollout_is": "token_icepop",
                "rollout_is_threshold": 3.0,
                "rollout_is_threshold_lower": 0.6,
            },
            (1, 2, 0, 0, 1),
            (0, 0),
            (2 / 5, 2 / 3),
        ),
        # rows' products 8, 1/2 and 1, kept in [0.6, 3]
        (
            {"rollout_is": "seq_mis", "rollout_is_threshold": 3.0, "rollout_is_threshold_lower": 0.6},
            (0, 0, 0, 0, 1),
            (0, 0),
            (4 / 5, 2 / 3),
        ),
    ],
)
def test_weights_and_what_they_cut_by_token_and_by_row(knobs, weights, capped, masked):
    expected = {
        "gap/is_weight_mean": sum(weights) / 5,
        "gap/is_weight_max": max(weights),
        "gap/is_weight_ess": sum(weights) ** 2 / (5 * sum(u * u for u in weights)),
        "gap/is_weight_capped_frac": capped[0],
        "gap/is_weight_capped_row_frac": capped[1],
        "gap/is_weight_masked_frac": masked[0],
        "gap/is_weight_masked_row_frac": masked[1],
    }
    check(metrics_of("dapo", **knobs), expected)


def test_the_kl_to_the_reference_is_measured_wherever_it_enters():
    # three tokens of log π - log π_ref = ln 2, where k3 = e^-ln2 - 1 + ln 2
    kl = {"policy/kl_ref_k1": 3 * log(2) / 5, "policy/kl_ref_k3": 3 * (log(2) - 0.5) / 5}
    in_loss = metrics_of("grpo")
    check(in_loss, {**kl, "policy/kl_loss_coef": 0.04})
    in_reward = metrics_of("rloo")
    check(in_reward, kl)
    assert not {"policy/kl_loss", "policy/kl_loss_coef"} & in_reward.keys()


def test_a_row_ratio_is_counted_by_row():
    # GSPO: logs ln(0.75) / 3 (open below), ln 1/2 (A < 0: low), ln 4 (A < 0: open above)
    logs = (log(0.75) / 3, log(0.5), log(4))
    mean = sum(logs) / 3
    expected = {
        "policy/ratio_mean": sum(map(exp, logs)) / 3,
        "policy/log_ratio_mean": mean,
        "policy/log_ratio_std": sqrt(sum(x * x for x in logs) / 3 - mean**2),
        "policy/clip_frac_low": 1 / 3,
        "policy/clip_frac_high": 0.0,
        "policy/clip_frac_dual": 0.0,
    }
    check(metrics_of("gspo"), expected)


def test_cispos_cap_is_counted_by_the_sign_of_the_advantage():
    # cap 1.4: 1.5 with A > 0, 4 with A < 0
    expected = {"policy/clip_frac_high": 1 / 5, "policy/clip_frac_dual": 1 / 5, "policy/clip_frac_low": 0.0}
    check(metrics_of("cispo", cispo_ratio_high=1.4), expected)


def test_rows_left_out_for_having_moved_away_are_counted():
    # means of log π_old - log π where A < 0: ln 2 and -ln 4; one token of five
    check(metrics_of("dapo", off_policy_mask_threshold=0.2), {"policy/off_policy_masked_frac": 1 / 5})


def test_a_token_without_the_engines_logprob_is_in_no_gap_and_counted():
    policy, layout = made()
    layout.rollout_logprobs[0, 2] = torch.nan  # w = 4 is gone: 1, 2, 1/2, 1
    _, _, sums = evaluate(get_algorithm("dapo"), policy, layout, splits=PARTS)
    expected = {
        "gap/missing_logprob_frac": 1 / 5,
        "policy/nonfinite_token_frac": 1 / 5,  # the correction needs it
        "gap/ratio_mean": 4.5 / 4,
        "gap/ppl_ratio": (1 / sqrt(2) + 2 + 1) / 3,
    }
    check(metric_values(sums), expected)


def test_spread_and_correlation_of_what_does_not_vary_are_zero_and_nothing():
    same, ones = torch.full((7,), 0.1), torch.ones(7)
    values = metric_values(
        add_metrics(
            {
                "std": std_share(same[part], ones[part]),
                "r": correlation_share(same[part], same[part], ones[part]),
            }
            for part in (slice(0, 2), slice(2, 7))
        )
    )
    assert values == pytest.approx({"std": 0.0}, abs=1e-8)
    assert metric_values({"std": std_share(same, 0 * ones)}) == {}
    x = torch.tensor([1.0, 2.0, 4.0])
    assert correlation_share(x, 3 * x - 1, torch.ones(3)).value() == pytest.approx(1.0)
