"""Preference losses against their formulas, by hand and by the obvious version."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, sigmoid

from rl.numerics import add_metrics, metric_values
from rl.preference_rows import PREFERENCES, get_preference
from rl.preferences import PREFERENCE_METRICS, PreferenceLoss, reference_point
from rl.preferences import bradley_terry_loss as bt_loss

F64 = torch.float64
SOFTPLUS = math.log1p(math.exp(-0.3))  # -log σ(0.3) = 0.554355
every_row = pytest.mark.parametrize("name", PREFERENCES)
both_dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32])

Side = Sequence[Tensor]  # log-probs, reference log-probs and mask of one side's rows, (B, T) each


def side(*, seed: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor]:
    """Five rows with holes in their masks."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, ref = -torch.randn(2, 5, 7, generator=generator, dtype=F64).abs().to(dtype)
    mask = torch.rand(5, 7, generator=generator) < 0.6
    mask[:, 0] = True
    return logprobs, ref, mask


def evaluate(row: PreferenceLoss, chosen: Side, rejected: Side, *, splits: tuple[slice, ...] = ()):
    """Loss, gradients to both sides' log-probs, metrics. To kto the chosen are desirable; its z0 is 0.3."""
    total = len(chosen[0]) if splits else None
    leaves = [rows[0].clone().requires_grad_() for rows in (chosen, rejected)]
    parts = []
    for part in splits or (slice(None),):
        logprobs, refs, masks = (
            [x[part] for x in pair] for pair in (leaves, *zip(chosen[1:], rejected[1:], strict=True))
        )
        if row.loss_type == "kto":
            desirable = torch.tensor([True] * len(logprobs[0]) + [False] * len(logprobs[1]))
            rows = (torch.cat(x) for x in (logprobs, refs, masks))
            parts.append(row.unpaired_loss(*rows, desirable=desirable, z0=0.3, num_rows=total and 2 * total))
        else:
            refs = () if row.reference_free else refs
            parts.append(row.loss(*logprobs, *masks, *refs, num_pairs=total))
    loss = torch.stack([value for value, _ in parts]).sum()
    gradients = torch.autograd.grad(loss, leaves)
    return loss.detach(), gradients, metric_values(add_metrics(sums for _, sums in parts))


# One pair. Log-ratios 0.3 + 0.1 over 2 tokens and -0.2 over 1: d = 0.4 + 0.2 = 0.6; averaged 0.2 + 0.2 = 0.4.
# Log-probs -0.5 - 0.7, averaged -0.6, and -1.0. Nothing looks at the masked token in between.
CHOSEN = ([[-0.5, 9.0, -0.7]], [[-0.8, -9.0, -0.8]], [[1, 0, 1]])
REJECTED = ([[-1.0]], [[-0.8]], [[1]])


def by_hand(row: PreferenceLoss, dtype: torch.dtype = F64):
    chosen, rejected = ([torch.tensor(x, dtype=dtype) for x in rows] for rows in (CHOSEN, REJECTED))
    loss, _, metrics = evaluate(row, chosen, rejected)
    return loss.item(), {name.removeprefix("preference/"): value for name, value in metrics.items()}


@both_dtypes
@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("dpo", {"beta": 0.5}, SOFTPLUS),  # β d = 0.3
        ("cdpo", {"beta": 0.5, "label_smoothing": 0.1}, SOFTPLUS + 0.03),  # -log σ(-x) = -log σ(x) + x
        ("robust", {"beta": 0.5, "label_smoothing": 0.1}, SOFTPLUS - 0.03 / 0.8),  # (.9 s - .1 (s + .3)) / .8
        ("ipo", {"beta": 0.5}, 0.36),  # (0.4 - 1)²
        ("ipo", {"beta": 0.5, "average_log_prob": False}, 0.16),  # (0.6 - 1)²
        ("hinge", {"beta": 0.5}, 0.7),  # 1 - 0.3
        ("hinge", {"beta": 2.0}, 0.0),  # 1 - 1.2 < 0
        ("dpo_norm", {"beta": 0.75}, SOFTPLUS),  # 0.75 · 0.4
        ("simpo", {"beta": 2.0, "gamma": 0.5}, SOFTPLUS),  # 2 (-0.6 + 1) - 0.5 = 0.3
        # odds 1 / (e^0.6 - 1) and 1 / (e - 1); -log σ(log of their ratio) = log(1 + 1 / ratio)
        ("orpo", {"orpo_lambda": 0.5}, 0.6 + 0.5 * math.log1p(math.expm1(0.6) / math.expm1(1.0))),
    ],
)
def test_every_formula_by_hand(name, knobs, expected, dtype):
    loss, _ = by_hand(get_preference(name, **knobs), dtype)
    assert loss == pytest.approx(expected, rel=1e-12 if dtype is F64 else 1e-6, abs=1e-12)


def test_metrics_by_hand():
    loss, metrics = by_hand(get_preference("ipo", beta=0.5))
    rewards = {"reward_margin": 0.2, "chosen_reward": 0.1, "rejected_reward": -0.1}  # 0.5 · averages
    nats = {"margin": 0.6, "chosen_drift": 0.4, "rejected_drift": -0.2, "chosen_logp": -1.2}
    shares = {"accuracy": 1.0, "reward_accuracy": 1.0, "nonfinite_frac": 0.0}
    assert metrics == pytest.approx({"loss": loss, "rejected_logp": -1.0, **rewards, **nats, **shares})
    # Without a reference it is log π itself; orpo's rewards are weighed with its lambda.
    _, metrics = by_hand(get_preference("orpo", orpo_lambda=0.5))
    assert (metrics["margin"], metrics["accuracy"]) == (pytest.approx(-0.2), 0.0)  # -1.2 + 1.0
    assert (metrics["reward_margin"], metrics["reward_accuracy"]) == (pytest.approx(0.2), 1.0)  # 0.5 · 0.4
    assert not any("drift" in name for name in metrics)


def obvious(row: PreferenceLoss, chosen: Side, rejected: Side) -> torch.Tensor:
    """As the formulas are written; kto with z0 = 0.3 and the weights 1.3 and 0.7."""

    def h(logprobs, ref, mask):
        x = logprobs if row.loss_type in ("simpo", "orpo") else logprobs - ref
        each = torch.mean if row.loss_type in ("ipo", "sigmoid_norm", "simpo", "orpo") else torch.sum
        return torch.stack([each(values[kept]) for values, kept in zip(x, mask, strict=True)])

    w, l = h(*chosen), h(*rejected)  # noqa: E741
    x, e = row.beta * (w - l), row.label_smoothing
    good, bad = -sigmoid(x).log(), -sigmoid(-x).log()
    odds_w, odds_l = (p.exp() / (1 - p.exp()) for p in (w, l))
    kto = 1.3 * (1 - sigmoid(row.beta * (w - 0.3))), 0.7 * (1 - sigmoid(row.beta * (0.3 - l)))
    said = (-values[kept].mean() for values, kept in zip(chosen[0], chosen[2], strict=True))
    good = good + row.rpo_alpha * torch.stack(list(said))
    return {
        "sigmoid": (1 - e) * good + e * bad,
        "sigmoid_norm": good,
        "robust": ((1 - e) * good - e * bad) / (1 - 2 * e),
        "ipo": (w - l - 1 / (2 * row.beta)) ** 2,
        "hinge": torch.clamp(1 - x, min=0),
        "simpo": -sigmoid(x - 0.5).log(),  # 0.25 of beta = 2
        "kto": torch.cat(kto),
        "orpo": -w - row.orpo_lambda * sigmoid((odds_w / odds_l).log()).log(),
    }[row.loss_type].mean()


@every_row
def test_every_row_is_the_obvious_version_in_value_and_gradient(name):
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7} if name == "kto" else {}
    row, chosen, rejected = get_preference(name, **weights), side(seed=1), side(seed=2)
    leaves = [logprobs.clone().requires_grad_() for logprobs, _, _ in (chosen, rejected)]
    definition = obvious(row, (leaves[0], *chosen[1:]), (leaves[1], *rejected[1:]))
    loss, gradients, metrics = evaluate(row, chosen, rejected)
    assert row.needs == (set() if name in ("simpo", "orpo") else {"ref_logprobs"})
    torch.testing.assert_close(loss, definition.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, torch.autograd.grad(definition, leaves), rtol=1e-11, atol=1e-15)
    assert set(metrics) <= set(PREFERENCE_METRICS)


@both_dtypes
@every_row
def test_neither_garbage_at_mask_0_nor_micro_batches_matter(name, dtype):
    row, clean = PREFERENCES[name], [side(seed=seed, dtype=dtype) for seed in (1, 2)]
    garbage = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e9, 0.0], dtype=dtype)
    dirty = [(*(torch.where(m, x, garbage[:, None]) for x in (a, b)), m) for a, b, m in clean]
    loss, gradients, metrics = evaluate(row, *clean)
    for splits in ((), (slice(1), slice(1, 4), slice(4, None))):
        again = evaluate(row, *dirty, splits=splits)
        torch.testing.assert_close(again[:2], (loss, gradients))
        assert again[2] == pytest.approx(metrics)
        assert all(not gradient[~mask].any() for gradient, (_, _, mask) in zip(again[1], clean, strict=True))


@every_row
@pytest.mark.parametrize("num_rows", [0, 2])
def test_nothing_to_train_on_is_0_with_a_graph(name, num_rows):
    nothing = [torch.full((num_rows, 3), value) for value in (torch.nan, torch.nan, 0.0)]
    loss, gradients, metrics = evaluate(PREFERENCES[name], nothing, nothing)
    assert (loss, metrics) == (0, {"preference/loss": 0.0})
    assert not torch.cat(gradients).any()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("part", [0, 1, 2])
@every_row
def test_empty_completions_are_padding_and_broken_ones_stay_in_the_denominator(name, part, victim):
    row, sides, is_empty = PREFERENCES[name], [side(seed=1), side(seed=2)], part == 2
    sides[victim][part][4] = False if is_empty else torch.nan  # of the log-probs, the reference's, the mask
    rest = [x if name == "kto" and i != victim else [y[:4] for y in x] for i, x in enumerate(sides)]
    unused = part == 1 and row.reference_free
    share = 0 if is_empty or unused else 1 / 10 if name == "kto" else 1 / 5
    loss, gradients, metrics = evaluate(row, *sides)
    expected, _, expected_metrics = evaluate(row, *(sides if unused else rest))
    torch.testing.assert_close(loss, expected * (1 - share))
    assert unused or not gradients[victim][4].any()
    expected_metrics |= {"preference/loss": loss.item(), "preference/nonfinite_frac": share}
    assert metrics == pytest.approx(expected_metrics)


def test_dpo_at_the_reference_is_ln_2_and_pulls_with_half_of_beta():
    _, ref, mask = side(seed=1)
    loss, gradients, metrics = evaluate(PREFERENCES["dpo"], (ref, ref, mask), (ref, ref, mask))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)
    torch.testing.assert_close(gradients[0], -0.1 * 0.5 / 5 * mask.double())
    assert metrics["preference/accuracy"] == 0.0  # a tie is no preference


@pytest.mark.parametrize("name", [name for name in PREFERENCES if name != "kto"])
def test_swapping_the_pair_flips_the_margin(name):
    forth, back = (evaluate(PREFERENCES[name], side(seed=a), side(seed=3 - a))[2] for a in (1, 2))
    for prefix in ("preference/", "preference/reward_"):
        assert forth[f"{prefix}margin"] == pytest.approx(-back[f"{prefix}margin"])
        assert forth[f"{prefix}accuracy"] == pytest.approx(1 - back[f"{prefix}accuracy"])


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.49])
def test_label_noise_is_a_mixture_and_robust_takes_it_out_again(noise):
    names = {"dpo": {}, "cdpo": {"label_smoothing": noise}, "robust": {"label_smoothing": noise}}
    pairs = [(side(seed=1), side(seed=2)), (side(seed=2), side(seed=1))]
    rows = [get_preference(name, **knobs) for name, knobs in names.items()]
    (clean, flipped), (mixed, _), (right, wrong) = ([evaluate(row, *x)[0] for x in pairs] for row in rows)
    torch.testing.assert_close(mixed, (1 - noise) * clean + noise * flipped)
    # Over labels that are wrong with probability ε its mean is the loss of clean labels.
    torch.testing.assert_close((1 - noise) * right + noise * wrong, clean)


def test_simpos_gamma_is_absolute_and_its_ratio_a_multiple_of_beta():
    knobs = {"gamma": 1.0}, {"gamma_beta_ratio": 0.5}, {"gamma": 0.5}
    absolute, ratio, half = (by_hand(get_preference("simpo", beta=2.0, **knob))[0] for knob in knobs)
    assert ratio == absolute == pytest.approx(math.log1p(math.exp(0.2)))  # 2 · 0.4 - 1
    assert half == pytest.approx(SOFTPLUS)  # 2 · 0.4 - 0.5


def test_kto_by_hand_and_z0_is_a_constant_not_below_0():
    # h = 0.6 and -0.2, z0 = 0.1, β = 2: 1.5 (1 - σ(1)) and 0.5 (1 - σ(0.6)); mean of the two
    logprobs = torch.tensor([[-0.5, -0.5], [-1.0, 7.0]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[-0.8, -0.8], [-0.8, 0.0]], dtype=F64, requires_grad=True)
    mask, desirable = torch.tensor([[1, 1], [1, 0]]), torch.tensor([True, False])
    row = get_preference("kto", beta=2.0, desirable_weight=1.5, undesirable_weight=0.5)
    z0 = torch.tensor(0.1, dtype=F64, requires_grad=True)
    loss, sums = row.unpaired_loss(logprobs, ref, mask, desirable, z0)
    rewards = [metric_values(sums)[f"preference/{name}_reward"] for name in ("chosen", "rejected")]
    assert rewards == pytest.approx([1.2, -0.4])
    assert loss.item() == pytest.approx((1.5 / (1 + math.e) + 0.5 / (1 + math.exp(0.6))) / 2, rel=1e-12)
    assert torch.autograd.grad(loss, (z0, ref), allow_unused=True) == (None, None)
    below, zero = (row.unpaired_loss(logprobs, ref, mask, desirable, z)[0] for z in (-3.0, 0.0))
    assert below == zero


def test_the_reference_point_is_the_mean_log_ratio_held_at_0():
    logprobs = torch.tensor([[-1.0, -1.0], [-1.0, 9.0], [torch.nan, 0.0]], requires_grad=True)
    ref, mask = torch.tensor([[-1.5, -1.4], [-0.8, 0.0], [0.0, 0.0]]), torch.tensor([[1, 1], [1, 0], [1, 1]])
    z0 = reference_point(logprobs, ref, mask)  # (0.9 - 0.2) / 2, without the row that is not finite
    assert z0.item() == pytest.approx(0.35, rel=1e-6)
    assert not z0.requires_grad
    assert [reference_point(ref[:n], logprobs[:n], mask[:n]).item() for n in (0, 3)] == [0.0, 0.0]


def test_long_sums_and_bfloat16_are_exact_where_their_own_sums_are_not():
    # Multiples of 2^-16, of which every per-token difference is exact in float32.
    sizes = torch.randint(1, 2**20, (4, 1, 32768), generator=torch.Generator().manual_seed(0))
    w, ref_w, l, ref_l = -(sizes / 2**16)  # noqa: E741
    exact = (ref_w.double() + l.double() - w.double() - ref_l.double()).sum().neg().item()
    mask = torch.ones(1, 32768)
    metrics = evaluate(PREFERENCES["dpo"], (w, ref_w, mask), (l, ref_l, mask))[2]
    assert metrics["preference/margin"] == exact
    assert metrics["preference/chosen_logp"] == w.double().sum().item()
    assert abs(((w.sum() - ref_w.sum()) - (l.sum() - ref_l.sum())).item() - exact) > 1e-3
    # Neighbours in bfloat16, 2^-7 apart: 32768 such steps are 256.
    x, ref = (value * mask.bfloat16() for value in (-1.0, -1.0078125))
    assert evaluate(PREFERENCES["dpo"], (x, ref, mask), (ref, ref, mask))[2]["preference/margin"] == 256.0


def test_bradley_terry_by_hand_with_a_margin_and_global_counts():
    # leads 0.8 - 0.2 - 0.3 = 0.3 and 1.0 - 1.2 - 0.3 = -0.5
    chosen, rejected = torch.tensor([0.8, 1.0], dtype=F64), torch.tensor([0.2, 1.2], dtype=F64)
    expected = (SOFTPLUS + math.log1p(math.exp(0.5))) / 2
    assert bt_loss(chosen, rejected, 0.3).item() == pytest.approx(expected, rel=1e-12)
    parts = [bt_loss(chosen[i], rejected[i], torch.full((1,), 0.3, dtype=F64), 2).item() for i in ([0], [1])]
    assert sum(parts) == pytest.approx(expected, rel=1e-12)
    nothing = bt_loss(chosen[:0].requires_grad_(), rejected[:0])
    assert (nothing.item(), nothing.requires_grad) == (0.0, True)


def test_bradley_terry_is_exact_at_scores_of_ten_thousand():
    scores = torch.tensor([1e4, -1e4, 100.0], requires_grad=True)
    loss = bt_loss(scores, torch.tensor([-1e4, 1e4, 0.0]))
    assert loss.item() == pytest.approx(2e4 / 3, rel=1e-12)
    assert torch.autograd.grad(loss, scores)[0].tolist() == pytest.approx([0.0, -1 / 3, 0.0])
