"""The table: what every row promises, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.algorithms import ALGORITHMS, describe, get_algorithm
from rl.batch import TOKEN_ARRAYS
from rl.critic import CRITIC_METRICS
from rl.loss_metrics import LOSS_METRICS
from rl.metric_names import DISTILL_METRICS
from rl.numerics import metric_values
from rl.outputs import TokenOutputs
from rl.rules import RULE_KNOBS
from tests.rl.making import counts_of, evaluate, random_layout, rows

ROWS = sorted(ALGORITHMS)
DEFINED = LOSS_METRICS.keys() | CRITIC_METRICS.keys() | DISTILL_METRICS.keys()
SPLITS = (slice(0, 1), slice(1, 4), slice(4, None))


def on_policy(name, **overrides):
    """The row without a KL, whose gradient is zero only at the reference."""
    knobs = {"kl_loss_coef": 0.0} if ALGORITHMS[name].kl_loss_coef else {}
    return get_algorithm(name, **knobs, **overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "positive", "negative"),
    [
        ("grpo", {}, (None, 1.2), (0.8, None)),
        ("dapo", {}, (None, 1.28), (0.8, None)),
        ("dapo", {"clip_ratio_c": 3.0}, (None, 1.28), (0.8, 3.0)),
        ("dapo", {"clip_ratio_low": 1.0}, (None, 1.28), (None, None)),
        ("gspo", {}, (None, 1.0004), (0.9997, None)),
        ("cispo", {}, (None, 5.0), (None, 5.0)),
        ("reinforce", {}, (1.0, 1.0), (1.0, 1.0)),
    ],
)
def test_the_ratio_may_move_where_the_paper_says(name, overrides, positive, negative):
    bounds = get_algorithm(name, **overrides).bounds
    found = [None if end is None else math.exp(end) for end in (*bounds.positive, *bounds.negative)]
    assert found == pytest.approx([*positive, *negative])


@pytest.mark.parametrize("name", [name for name in ROWS if name != "jsd"])
def test_on_policy_the_gradient_is_reinforces(name):
    logprobs, layout = random_layout(spread=0.0)
    layout = replace(layout, rollout_logprobs=layout.old_logprobs)
    row = on_policy(name)
    _, gradient, sums = evaluate(row, logprobs, layout)
    # d/dℓ of -A ℓ c: the constant c of the row's own aggregation
    knobs = {"loss_agg_mode": row.loss_agg_mode, "loss_scale_factor": row.loss_scale_factor}
    _, expected, _ = evaluate(get_algorithm("reinforce", **knobs), logprobs, layout)
    scale = 1 / (1 + RULE_KNOBS["opmd"]["tau"]) if name == "opmd" else 1.0  # its own constant
    torch.testing.assert_close(gradient, scale * expected)
    values = metric_values(sums)
    ratios = ("policy/ratio_mean", "policy/ratio_min", "policy/ratio_max", "policy/ess")
    assert [values[ratio] for ratio in ratios] == pytest.approx([1.0] * 4)
    assert values["policy/clip_frac_low"] == values["policy/clip_frac_high"] == 0.0


@pytest.mark.parametrize("name", ROWS)
def test_micro_batches_change_neither_gradient_nor_metrics(name):
    logprobs, layout = random_layout()
    whole, parts = (evaluate(ALGORITHMS[name], logprobs, layout, splits=s) for s in ((slice(None),), SPLITS))
    torch.testing.assert_close(whole[:2], parts[:2])
    assert metric_values(whole[2]) == pytest.approx(metric_values(parts[2]))


@pytest.mark.parametrize("name", ROWS)
def test_neither_row_order_nor_padding_matters(name):
    logprobs, layout = random_layout()
    loss, gradient, sums = evaluate(ALGORITHMS[name], logprobs, layout)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = evaluate(ALGORITHMS[name], logprobs[order], rows(layout, order))
    torch.testing.assert_close(shuffled[:2], (loss, gradient[order]))
    padding = torch.nn.functional.pad
    wide = replace(
        layout,
        **{
            tensor: padding(getattr(layout, tensor), (0, 3))
            for tensor in (
                "token_ids",
                "attention_mask",
                "position_ids",
                "loss_mask",
                "rollout_logprobs",
                *TOKEN_ARRAYS,
            )
        },
    )
    padded = evaluate(ALGORITHMS[name], padding(logprobs, (0, 3)), wide)
    torch.testing.assert_close(padded[:2], (loss, padding(gradient, (0, 3))))
    assert metric_values(padded[2]) == pytest.approx(metric_values(sums))


@pytest.mark.parametrize("name", ROWS)
def test_deleting_masked_tokens_equals_masking_them(name):
    logprobs, layout = random_layout(num_rows=1)
    kept = layout.loss_mask[0]
    masked = evaluate(ALGORITHMS[name], logprobs, layout)
    tensors = ("token_ids", "attention_mask", "position_ids", "loss_mask", "rollout_logprobs")
    tensors += TOKEN_ARRAYS
    short = replace(layout, **{tensor: getattr(layout, tensor)[:, kept] for tensor in tensors})
    deleted = evaluate(ALGORITHMS[name], logprobs[:, kept], short)
    torch.testing.assert_close(deleted[:2], (masked[0], masked[1][:, kept]))


@pytest.mark.parametrize("name", ROWS)
def test_nothing_to_train_on_is_zero_with_a_graph(name):
    logprobs, layout = random_layout()
    layout = replace(layout, loss_mask=torch.zeros_like(layout.loss_mask))
    for chosen in (slice(None), slice(0, 0)):
        loss, gradient, _ = evaluate(ALGORITHMS[name], logprobs[chosen], rows(layout, chosen))
        assert loss == 0.0
        assert not gradient.any()


@pytest.mark.parametrize("name", ROWS)
def test_a_thousand_nats_give_a_finite_loss_and_gradient_in_float32(name):
    logprobs, layout = random_layout(dtype=torch.float32)
    layout.old_logprobs[0] = -1000.0
    layout.old_logprobs[1] = 1000.0
    loss, gradient, sums = evaluate(ALGORITHMS[name], logprobs, layout)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert all(np.isfinite(value) for value in metric_values(sums).values())


@pytest.mark.parametrize("name", ROWS)
def test_bfloat16_log_probs_are_computed_on_in_float32(name):
    logprobs, layout = random_layout(dtype=torch.float32)
    low = logprobs.bfloat16()
    loss, _, _ = evaluate(ALGORITHMS[name], low, layout)
    expected, _, _ = evaluate(ALGORITHMS[name], low.float(), layout)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ROWS)
def test_every_metric_is_defined_in_words(name):
    logprobs, layout = random_layout()
    _, _, sums = evaluate(ALGORITHMS[name], logprobs, layout)
    assert set(sums) <= DEFINED


def test_every_metric_in_words_is_emitted_by_some_row():
    logprobs, layout = random_layout()
    rows = [*ALGORITHMS.values(), get_algorithm("grpo", off_policy_mask_threshold=0.1)]
    emitted = set().union(*(evaluate(row, logprobs, layout)[2] for row in rows))
    assert emitted == DEFINED


def test_a_token_that_is_not_finite_leaves_the_loss_and_stays_in_the_denominator():
    logprobs, layout = random_layout()
    layout = replace(layout, loss_mask=torch.ones_like(layout.loss_mask))  # 54 tokens
    row = get_algorithm("dapo")
    _, before, _ = evaluate(row, logprobs, layout)
    broken = layout.old_logprobs.clone()
    broken[2, 3] = float("nan")
    missing = layout.rollout_logprobs.clone()
    missing[4, 1] = -float("inf")
    layout = replace(layout, old_logprobs=broken, rollout_logprobs=missing)
    _, after, sums = evaluate(row, logprobs, layout)
    before[2, 3] = before[4, 1] = 0.0
    torch.testing.assert_close(after, before)
    values = metric_values(sums)
    assert values["policy/nonfinite_token_frac"] == pytest.approx(2 / 54)
    assert values["gap/missing_logprob_frac"] == pytest.approx(1 / 54)  # the other is the learner's


def test_the_entropy_bonus_has_the_aggregations_weight():
    logprobs, layout = random_layout()
    entropy = torch.rand(logprobs.shape, dtype=torch.float64, requires_grad=True)
    row = get_algorithm("dapo", entropy_coeff=0.1)
    loss, _ = row.loss(TokenOutputs(logprobs, entropy), layout, counts_of(layout))
    (gradient,) = torch.autograd.grad(loss, entropy)
    torch.testing.assert_close(gradient, -0.1 * layout.loss_mask.double() / layout.loss_mask.sum())
    assert row.entropy_gradient
    assert not get_algorithm("dapo").entropy_gradient


def test_bypass_takes_the_ratio_to_the_engine():
    logprobs, layout = random_layout()
    bypass = get_algorithm("dapo", bypass_mode=True, rollout_is="none")
    assert bypass.needs == frozenset()
    direct = evaluate(bypass, logprobs, replace(layout, old_logprobs=None))
    same = evaluate(
        get_algorithm("dapo", rollout_is="none"),
        logprobs,
        replace(layout, old_logprobs=layout.rollout_logprobs),
    )
    torch.testing.assert_close(direct[:2], same[:2])


def test_needs_follow_the_knobs():
    assert get_algorithm("grpo").needs == {"old_logprobs", "ref_logprobs"}
    assert get_algorithm("grpo", kl_loss_coef=0.0).needs == {"old_logprobs"}
    assert get_algorithm("rloo").needs == {"old_logprobs", "ref_logprobs"}


def test_a_loss_without_its_inputs_says_what_to_call():
    logprobs, layout = random_layout()
    with pytest.raises(ValueError, match=r"'dapo' needs advantages.*assign_advantages"):
        evaluate(get_algorithm("dapo"), logprobs, replace(layout, advantages=None))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gropo", {}, "unknown algorithm 'gropo'; did you mean 'grpo'"),
        ("grpo", {"clip_ratio_hi": 0.3}, "unknown knob.*did you mean 'clip_ratio_high'"),
        (
            "grpo",
            {"loss_agg_mode": "token_mean"},
            "unknown loss_agg_mode 'token_mean'; did you mean 'token-mean'",
        ),
        ("reinforce", {"clip_ratio_c": 3.0}, "clip_ratio_c = 3.0 has no effect.*has no such clip"),
        ("dapo", {"kl_loss_type": "k3"}, "no effect.*kl_loss_coef is 0"),
        ("dapo", {"loss_scale_factor": 100.0}, "no effect.*seq-mean-token-sum-norm"),
        ("dapo", {"rollout_is_threshold_lower": 0.5}, "'token_tis' has no lower end"),
        ("reinforce", {"rollout_is_threshold": 2.0}, "rollout_is is 'none'"),
        ("grpo", {"loss_agg_mode": "seq-mean-token-sum-norm"}, "divides by loss_scale_factor; give it"),
        ("grpo", {"clip_ratio_c": 1.0}, "expected more than 1"),
        ("grpo", {"clip_ratio_low": 1.5}, "expected at most 1"),
        ("grpo", {"kl_loss_coef": float("nan")}, "kl_loss_coef = nan: expected at least 0"),
        ("grpo", {"bypass_mode": True}, "nothing is left to correct"),
        ("dapo", {"overlong_buffer_len": 10}, "give both or neither"),
        ("dapo", {"overlong_buffer_len": 10, "max_response_length": 5}, "above max_response_length"),
    ],
)
def test_what_cannot_be_or_changes_nothing_is_refused_with_the_reason(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        get_algorithm(name, **overrides)


def test_none_keeps_the_rows_own_value_and_low_var_kl_is_k3():
    assert get_algorithm("grpo", clip_ratio_high=None, kl_loss_type="low_var_kl") == ALGORITHMS["grpo"]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_describes_itself_in_one_line(name):
    line = describe(ALGORITHMS[name])
    assert line.startswith(f"{name}: advantage {ALGORITHMS[name].adv_estimator}")
    assert "\n" not in line
