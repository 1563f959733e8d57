"""Distributions against enumeration, limits and the dense definition."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.distributions import (
    distillation_loss,
    forward_kl,
    generalized_jsd,
    kl_divergence,
    log1mexp,
    log_odds,
    reverse_kl,
    sampling_logprobs,
    top_tokens,
    z_loss,
)
from rl.numerics import metric_values
from rl.preference_rows import PREFERENCES

F64 = torch.float64
INF = math.inf
both_dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32])


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(*shape, generator=generator, dtype=F64)).to(dtype)


def of(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=F64).log()


@both_dtypes
def test_log1mexp_is_exact_on_both_sides_of_the_split(dtype):
    x = torch.tensor([-1e-8, -1e-3, -math.log(2), -1.0, -40.0, -1e4], dtype=dtype, requires_grad=True)
    values, (near, small, *_) = log1mexp(x), x.tolist()
    # near 0 as expm1 has it, ln ½ at -ln 2, -e^x far away
    expected = [math.log(-math.expm1(near)), math.log(-math.expm1(small)), -math.log(2)]
    expected += [math.log(1 - math.exp(-1)), -math.exp(-40), 0.0]
    tolerance = 1e-12 if dtype is F64 else 3e-7
    assert values.tolist() == pytest.approx(expected, rel=tolerance, abs=1e-30)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    slopes = [-1 / math.expm1(min(-value, 700.0)) for value in x.tolist()]  # d/dx = -1 / (e^-x - 1)
    assert gradient.tolist() == pytest.approx(slopes, rel=tolerance, abs=1e-30)
    assert log1mexp(torch.zeros(1)).item() == -INF


@both_dtypes
def test_log_odds_by_hand_and_held_where_p_is_1(dtype):
    # p = 1/4: odds 1/3; p = e^-10000: the log-prob itself; p = 1: the net
    x = torch.tensor([math.log(0.25), -1e4, 0.0, 1e-3], dtype=dtype, requires_grad=True)
    values = log_odds(x)
    assert values.tolist() == pytest.approx([-math.log(3), -1e4, 20.0, 20.0], rel=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.tolist() == pytest.approx([4 / 3, 1.0, 0.0, 0.0], rel=1e-6)  # 1 / (1 - p)


@both_dtypes
@pytest.mark.parametrize("logp", [0.0, -1e-12, -1e-8, -1.0, -1e4])
def test_orpo_is_finite_from_certainty_to_impossibility(logp, dtype):
    mask = torch.ones(1, 1)
    for chosen, rejected in ((logp, -1.0), (-1.0, logp), (logp, logp)):
        leaves = [torch.full((1, 1), x, dtype=dtype, requires_grad=True) for x in (chosen, rejected)]
        loss, sums = PREFERENCES["orpo"].loss(leaves[0], leaves[1], mask, mask)
        assert loss.isfinite()
        assert torch.cat(torch.autograd.grad(loss, leaves)).isfinite().all()
        assert all(math.isfinite(value) for value in metric_values(sums).values())


def test_orpos_gradient_at_an_all_but_certain_rejection():
    # λ σ(b - a) / (1 - e^x) with x = -1e-8, b = log odds of e^x = 18.42, a = -0.54: σ = 1 - 6e-9
    leaves = [torch.full((1, 1), x, dtype=F64, requires_grad=True) for x in (-1.0, -1e-8)]
    loss, _ = PREFERENCES["orpo"].loss(leaves[0], leaves[1], torch.ones(1, 1), torch.ones(1, 1))
    assert torch.autograd.grad(loss, leaves[1])[0].item() == pytest.approx(0.1 * 1e8, rel=1e-7)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [1, 1, 1, 0]),
        ({"top_k": 9}, [1, 1, 1, 1]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),  # 0.5 reaches it alone
        ({"top_p": 0.6}, [1, 1, 0, 0]),  # 0.5 + 0.2, the first of two equal tokens
        ({"top_p": 0.8}, [1, 1, 1, 0]),
        ({"top_p": 0.95}, [1, 1, 1, 1]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),  # never none
        # of top-k's three, renormalised to 5/9 and twice 2/9: 5/9 + 2/9 = 0.78
        ({"top_k": 3, "top_p": 0.75}, [1, 1, 0, 0]),
        ({"top_k": 2, "top_p": 0.75}, [1, 1, 0, 0]),  # 5/7 = 0.71 is not enough
    ],
)
def test_top_tokens_by_hand(knobs, expected):
    logits = of([0.2, 0.5, 0.2, 0.1])
    assert top_tokens(logits, **knobs).int().tolist() == expected
    # The same in every row of a batch, whatever is added to its logits.
    assert top_tokens(torch.stack([logits + 3, logits]), **knobs).int().tolist() == [expected] * 2


def test_ties_are_kept_in_the_order_of_their_index():
    logits = torch.zeros(2, 64)
    for kept in (top_tokens(logits, top_k=7), top_tokens(logits, top_p=7 / 64)):
        assert kept.int().sum(0).tolist() == [2] * 7 + [0] * 57


def test_top_p_near_1_is_exact_and_1_keeps_a_token_that_no_sum_can_see():
    # e^-20 = 2e-9 is missing before the last: more than 1e-9, and 0 in float32
    assert top_tokens(torch.tensor([0.0, -15.0, -20.0]), top_p=1 - 1e-9).all()
    assert not top_tokens(torch.tensor([0.0, -15.0, -25.0]), top_p=1 - 1e-9).all()
    assert top_tokens(torch.tensor([0.0, -60.0]), top_p=1.0).all()


def test_sampling_logprobs_are_those_of_the_enumerated_distribution():
    logits, temperature, top_k, top_p = random_logits(20, 7), 0.7, 5, 0.8
    actual = sampling_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    for row, values in zip(logits.tolist(), actual.tolist(), strict=True):
        weights = {token: math.exp(x / temperature) for token, x in enumerate(row)}
        ranked = sorted(weights, key=lambda token: (-weights[token], token))[:top_k]
        kept, total = [], sum(weights[token] for token in ranked)
        for token in ranked:
            if sum(weights[other] for other in kept) < top_p * total:
                kept.append(token)
        mass = sum(weights[token] for token in kept)
        expected = [math.log(weights[token] / mass) if token in kept else -INF for token in weights]
        assert values == pytest.approx(expected, rel=1e-12)


def test_raw_scaled_and_processed_are_three_things():
    logits = of([0.5, 0.3, 0.2])
    raw = sampling_logprobs(logits)
    assert raw.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    scaled = sampling_logprobs(logits, temperature=0.5)  # p² renormalised: 25, 9, 4 of 38
    assert scaled.exp().tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38])
    assert not torch.allclose(scaled, raw / 0.5)  # which is not a distribution
    processed = sampling_logprobs(logits, temperature=0.5, top_k=2)
    assert processed.exp().tolist() == pytest.approx([25 / 34, 9 / 34, 0.0])
    # Kept tokens differ from the full softmax by what the others had.
    assert (scaled - processed)[:2].tolist() == pytest.approx([math.log(34 / 38)] * 2)


def test_the_gradient_of_processed_log_probs_stays_in_the_kept_set():
    logits = of([0.5, 0.3, 0.2]).requires_grad_()
    sampling_logprobs(logits, top_k=2)[0].backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([3 / 8, -3 / 8, 0.0])


def test_bfloat16_logits_are_normalised_in_float32():
    logits = random_logits(4, 50, dtype=torch.bfloat16)
    exact = logits.double().log_softmax(-1)
    for values in (sampling_logprobs(logits), sampling_logprobs(logits, top_k=50)):
        assert values.dtype is torch.float32
        torch.testing.assert_close(values.double(), exact, atol=2e-6, rtol=0)


P, Q = [0.5, 0.3, 0.2], [0.25, 0.25, 0.5]


def test_kl_by_hand_and_its_two_directions():
    # .5 ln 2 + .3 ln 1.2 + .2 ln .4 and .25 ln .5 + .25 ln(1/1.2) + .5 ln 2.5
    there = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
    back = 0.25 * math.log(0.5) - 0.25 * math.log(1.2) + 0.5 * math.log(2.5)
    assert kl_divergence(of(P), of(Q)).item() == pytest.approx(there, rel=1e-12)
    assert forward_kl(student=of(Q), teacher=of(P)).item() == pytest.approx(there, rel=1e-12)
    assert reverse_kl(student=of(Q), teacher=of(P)).item() == pytest.approx(back, rel=1e-12)


def test_kl_of_left_out_tokens():
    narrow = of([0.5, 0.5, 0.0]).requires_grad_()
    value = kl_divergence(narrow, of(Q))  # ln 2
    assert value.item() == pytest.approx(math.log(2), rel=1e-12)
    assert torch.autograd.grad(value, narrow)[0].isfinite().all()
    assert kl_divergence(of(Q), narrow).item() == INF


def jsd(beta: float, student: list[float] = Q, teacher: list[float] = P) -> float:
    return generalized_jsd(of(student)[None], of(teacher)[None], beta=beta).item()


def test_jsd_is_the_forward_kl_at_0_the_reverse_kl_at_1_and_symmetric_in_between():
    p, q = np.array(P), np.array(Q)
    assert jsd(0.0) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-12)
    assert jsd(1.0) == pytest.approx((q * np.log(q / p)).sum(), rel=1e-12)
    for beta in (0.1, 0.5, 0.9):
        m = beta * p + (1 - beta) * q
        expected = beta * (p * np.log(p / m)).sum() + (1 - beta) * (q * np.log(q / m)).sum()
        assert jsd(beta) == pytest.approx(expected, rel=1e-12)
        assert jsd(beta) == pytest.approx(jsd(1 - beta, student=P, teacher=Q), rel=1e-12)
    # The formula goes to 0 at both ends, with the KL as its slope: no limit of it is a KL.
    assert jsd(1e-6) == pytest.approx(1e-6 * jsd(0.0), rel=1e-4)
    assert jsd(1 - 1e-6) == pytest.approx(1e-6 * jsd(1.0), rel=1e-4)
    assert jsd(0.3, student=P) == pytest.approx(0.0, abs=1e-15)


def test_jsd_of_distributions_that_share_no_token_is_ln_2_with_a_finite_gradient():
    student, teacher = of([1.0, 0.0, 0.0])[None].requires_grad_(), of([0.0, 1.0, 0.0])[None]
    value = generalized_jsd(student, teacher, beta=0.5)
    assert value.item() == pytest.approx(math.log(2), rel=1e-12)
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_equal_the_dense_definition_in_value_and_gradient(beta, chunk_size):
    student, teacher = random_logits(9, 5).requires_grad_(), random_logits(9, 5, seed=1).requires_grad_()
    s, t = ((x / 0.7).softmax(-1) for x in (student, teacher.detach()))
    m = beta * t + (1 - beta) * s
    expected = {
        0.0: (t * (t / s).log()).sum(-1),
        0.3: (beta * t * (t / m).log() + (1 - beta) * s * (s / m).log()).sum(-1),
        1.0: (s * (s / t).log()).sum(-1),
    }[beta]
    actual = generalized_jsd(student, teacher, beta=beta, temperature=0.7, chunk_size=chunk_size)
    torch.testing.assert_close(actual, expected)
    weights = torch.arange(1.0, 10.0, dtype=F64)
    ours, teachers = torch.autograd.grad((weights * actual).sum(), (student, teacher), allow_unused=True)
    torch.testing.assert_close(ours, torch.autograd.grad((weights * expected).sum(), student)[0])
    assert teachers is None  # the teacher is a constant


def test_no_softmax_of_all_tokens_is_kept_for_the_backward_pass():
    student, teacher = random_logits(8, 5).requires_grad_(), random_logits(8, 5, seed=1)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        generalized_jsd(student, teacher, beta=0.5, chunk_size=2)
        z_loss(student, torch.ones(8), coef=1.0, chunk_size=2)
    logits = {x.untyped_storage().data_ptr() for x in (student, teacher)}
    others = {x.untyped_storage().data_ptr() for x in saved if x.ndim == 2} - logits
    assert len(others) == 1  # the rows of z_loss's logits at mask 1


def test_z_loss_by_hand_and_its_gradient():
    # lse = ln 4 and ln 8: 0.01 ((ln 4)² + (ln 8)²) / 2; the masked row is not looked at
    logits = torch.tensor([[0.0, math.log(3)], [torch.nan, INF], [math.log(4), math.log(4)]], dtype=F64)
    logits.requires_grad_()
    loss = z_loss(logits, torch.tensor([1, 0, 1]), coef=0.01)
    log_z = [math.log(4), 0.0, math.log(8)]
    assert loss.item() == pytest.approx(0.01 * (log_z[0] ** 2 + log_z[2] ** 2) / 2, rel=1e-12)
    # 2 · 0.01 · lse · softmax / 2
    softmax = torch.tensor([[0.25, 0.75], [0.0, 0.0], [0.5, 0.5]], dtype=F64)
    expected = 0.01 * torch.tensor(log_z, dtype=F64)[:, None] * softmax
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


@both_dtypes
def test_the_scalar_losses_average_over_masked_tokens_add_up_and_are_0_of_nothing(dtype):
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1]])
    garbage = torch.tensor([torch.nan, INF, -INF, 1e9, 0.0], dtype=dtype)
    clean, teacher = (random_logits(2, 4, 5, seed=seed, dtype=dtype) for seed in (0, 1))
    x, y = (torch.where(mask[..., None] > 0, logits, garbage) for logits in (clean, teacher))
    x.requires_grad_()
    rows = generalized_jsd(clean[mask > 0], teacher[mask > 0], beta=0.5, temperature=0.9)

    def jsd_loss(index, num_tokens=None):
        return distillation_loss(
            x[index], y[index], mask[index], beta=0.5, temperature=0.9, num_tokens=num_tokens
        )

    def lse_loss(index, num_tokens=None):
        return z_loss(x[index], mask[index], coef=0.1, num_tokens=num_tokens)

    log_z = clean[mask > 0].logsumexp(-1)
    for loss, expected in ((jsd_loss, rows.mean()), (lse_loss, 0.1 * log_z.square().mean())):
        whole = loss(slice(None))
        assert whole.dtype is F64
        assert whole.item() == pytest.approx(expected.item(), rel=1e-6)
        assert (loss([0], 5) + loss([1], 5)).item() == pytest.approx(whole.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(whole, x)
        assert gradient[mask > 0].all()
        assert not gradient[mask == 0].any()
    x, mask = x.detach().requires_grad_(), torch.zeros(2, 4)
    nothing = distillation_loss(x, y, mask, beta=0.5) + z_loss(x, mask, coef=0.1)
    assert nothing.item() == 0.0
    assert not torch.autograd.grad(nothing, x)[0].any()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("top_k = -1: expected at least 1", lambda x: top_tokens(x, top_k=-1)),
        ("top_p = 0: expected more than 0", lambda x: top_tokens(x, top_p=0)),
        ("top_p = 1.1: expected", lambda x: top_tokens(x, top_p=1.1)),
        ("temperature = 0.0: expected more than 0", lambda x: sampling_logprobs(x, temperature=0.0)),
        ("temperature = inf", lambda x: generalized_jsd(x, x, beta=0.5, temperature=INF)),
        ("beta = 1.5: expected 0 (forward KL)", lambda x: generalized_jsd(x, x, beta=1.5)),
        ("teacher_logits has shape (1, 3), expected", lambda x: generalized_jsd(x, x[:1], beta=0.5)),
        ("logits has shape (2, 3), expected (3, 'V')", lambda x: z_loss(x, torch.ones(3), coef=1.0)),
    ],
)
def test_what_makes_no_sense_is_refused(message, call):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.zeros(2, 3))
