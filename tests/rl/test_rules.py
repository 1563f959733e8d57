"""The plug-in rules against their formulas, by hand and by the obvious version."""

from math import exp, inf, log, nan

import pytest
import torch

from rl.batch import LossCounts
from rl.losses import Bounds, Clipped, LossTokens, surrogate, token_norm
from rl.numerics import select
from rl.rules import (
    RULE_ALIASES,
    RULE_KNOBS,
    RULES,
    RuleLoss,
    RuleTokens,
    apply_rule,
    off_policy_sequence_mask,
    register_rule,
    rule_knobs,
)
from tests.rl.golden_config import NotOfferedError
from tests.rl.golden_rules import CASES, SPELLINGS, rule_of

F64, F32 = torch.float64, torch.float32
OF_A_BATCH = ("clip_cov", "kl_cov")
DROPS_NONE = {"clip_cov": {"clip_cov_lb": 1e9, "clip_cov_ub": 2e9}}
TAKES_MANY = {"clip_cov": {"clip_cov_lb": -9.0, "clip_cov_ratio": 0.3}, "kl_cov": {"kl_cov_ratio": 0.3}}


def rule_tokens(logprobs, log_ratio, advantages, kept=None, *, dtype=F64):
    """Log-probs as a leaf, and a rule's tokens; the log-ratio has the gradient of the log-probs."""
    kept = torch.ones_like(logprobs) if kept is None else kept
    leaf = logprobs.to(dtype).detach().requires_grad_()
    policy, log_ratio, advantages = (select(kept > 0, x.to(dtype)) for x in (leaf, log_ratio, advantages))
    log_ratio = policy - policy.detach() + log_ratio
    return leaf, RuleTokens(logprobs=policy, log_ratio=log_ratio, advantages=advantages, kept=kept > 0)


def run(name, *inputs, knobs=None, dtype=F64):
    """Token losses, their gradient to the log-probs, and the counters (4, B, T)."""
    leaf, x = rule_tokens(*inputs, dtype=dtype)
    loss = apply_rule(name, x, knobs or {})
    (gradient,) = torch.autograd.grad(loss.per_token.sum(), leaf)
    return loss.per_token.detach(), gradient, torch.stack(loss.clipped)


def random_inputs(num_rows=5, length=8, *, spread=0.5):
    """Log-probs, log-ratios, one advantage a row, and a mask with holes and an empty last row."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, num_rows, length, generator=generator, dtype=F64)
    kept = torch.rand(num_rows, length, generator=generator) < 0.7
    kept[-1] = False
    return -noise[0].abs() - 0.1, spread * noise[1], noise[2][:, :1].expand(num_rows, length), kept


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", RULES)
def test_on_policy_the_gradient_is_that_of_reinforce(name, dtype):
    logprobs, _, advantages, kept = random_inputs()
    inputs = (logprobs, torch.zeros_like(logprobs), advantages, kept)
    _, gradient, clipped = run(name, *inputs, dtype=dtype, knobs=DROPS_NONE.get(name))
    # The exceptions of their docstrings, τ = 1 and the row's length; what Clip-Cov drops is among the cases.
    factor = {"opmd": 0.5, "luspo": kept.sum(1, keepdim=True)}.get(name, 1.0)
    torch.testing.assert_close(gradient, torch.where(kept, -advantages * factor, 0.0).to(dtype))
    assert not clipped.any()


@pytest.mark.parametrize("name", RULES)
def test_masked_tokens_count_as_little_as_deleted_ones_whatever_they_are(name):
    inputs = random_inputs(num_rows=4, length=6, spread=1.0)[:3]
    kept = torch.tensor([[1, 0, 1, 1, 0, 1]]).expand(4, 6).bool()
    filling = torch.tensor([nan, inf, -inf, 1e9], dtype=F64).repeat(6).reshape(4, 6)
    masked = run(name, *(torch.where(kept, x, filling) for x in inputs), kept, knobs=TAKES_MANY.get(name))
    deleted = run(name, *(x[kept].reshape(4, 4) for x in inputs), knobs=TAKES_MANY.get(name))
    for ours, expected in zip(masked, deleted, strict=True):
        torch.testing.assert_close(ours[..., kept], expected.flatten(-2))
        assert not ours[..., ~kept].any()


@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
@pytest.mark.parametrize("name", RULES)
def test_nothing_overflows(name, log_ratio):
    ones = torch.ones(2, 3)
    logprobs = (-1.0 if log_ratio > 0 else -1001.0) * ones
    for sign in (1.0, -1.0):
        loss, gradient, _ = run(name, logprobs, log_ratio * ones, sign * ones, dtype=F32)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_a_split_into_micro_batches_changes_nothing_or_the_rule_says_so(name):
    inputs = random_inputs(spread=0.1 if name in OF_A_BATCH else 1.0)
    knobs = {"clip_cov_lb": 0.0} if name == "clip_cov" else {}
    splits = (slice(0, 1), slice(1, 3), slice(3, 5))
    parts = zip(*(run(name, *(x[rows] for x in inputs), knobs=knobs) for rows in splits), strict=True)
    same = [
        torch.allclose(torch.cat(part, -2).double(), whole.double(), rtol=1e-12, atol=0)
        for part, whole in zip(parts, run(name, *inputs, knobs=knobs), strict=True)
    ]
    assert all(same) == (name not in OF_A_BATCH)
    says_so = "splitting a batch changes the result" in " ".join((RULES[name].__doc__ or "").split())
    assert says_so == (name in OF_A_BATCH)


@pytest.mark.parametrize("name", RULES)
def test_nothing_to_train_on_is_zero_with_a_graph(name):
    x = torch.tensor([[nan, 0.3]])
    for result in run(name, x, x, x, torch.zeros_like(x)):  # loss, and what backward finds
        assert not result.any()


@pytest.mark.parametrize("name", RULES)
def test_float32_agrees_with_float64(name):
    inputs = random_inputs(num_rows=20, spread=1.0)
    for narrow, wide in zip(run(name, *inputs, dtype=F32), run(name, *inputs), strict=True):
        torch.testing.assert_close(narrow, wide.to(narrow.dtype), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "knobs", "row", "expected"), CASES)
def test_by_hand(name, knobs, row, expected):
    for dtype in (F64, F32):
        inputs = torch.tensor(row, dtype=F64).T[:, None]
        losses, gradient, clipped = run(name, *inputs, dtype=dtype, knobs=knobs)
        numbers = torch.tensor([pair[:2] for pair in expected], dtype=F64).to(dtype)
        found, rtol = torch.cat([losses, gradient]).T, 5e-9 if dtype == F64 else 2e-6
        torch.testing.assert_close(found, numbers, rtol=rtol, atol=1e-7)
        counters = [[side == token[2] for token in expected] for side in Clipped._fields]
        assert clipped[:, 0].tolist() == counters


def test_gmpo_is_the_papers_mean_over_rows_under_seq_mean_token_mean():
    logprobs, log_ratio, advantages, kept = random_inputs()
    leaf, x = rule_tokens(logprobs, log_ratio, advantages, kept)
    counts = LossCounts(num_tokens=int(kept.sum()), num_sequences=4)  # not the empty fifth row
    norm = token_norm(kept, torch.ones(5), counts, loss_agg_mode="seq-mean-token-mean", scale=None)
    again, y = rule_tokens(logprobs, log_ratio, advantages, kept)
    rows = zip(y.log_ratio[:4], advantages[:4, 0], kept[:4], strict=True)
    signed = [
        (a, a.sign() * torch.minimum(a.sign() * d[m], a.sign() * d[m].clamp(-0.4, 0.4))) for d, a, m in rows
    ]
    losses = (
        (apply_rule("gmpo", x, {}).per_token * norm).sum(),
        torch.stack([-a * d.mean().exp() for a, d in signed]).mean(),
    )
    torch.testing.assert_close(*losses)
    gradients = (torch.autograd.grad(*pair)[0] for pair in zip(losses, (leaf, again), strict=True))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_ties_go_to_the_smaller_index(name):
    # 10,000 tokens of two kinds, each with the covariance 1: 0.0002 of them are dropped, or have a penalty.
    sign = torch.tensor([1.0, -1.0], dtype=F64).repeat(5000).reshape(10, 1000)
    knobs = {"clip_cov_lb": 0.5} if name == "clip_cov" else {}
    losses, _, _ = run(name, sign - 2.0, torch.full_like(sign, -0.05), sign, knobs=knobs)
    touched = (losses + sign * exp(-0.05)).abs() > 1e-6
    assert touched.flatten().nonzero().flatten().tolist() == [0, 1]


def test_the_off_policy_mask_drops_negative_rows_that_moved_away():
    # Means of old - log π over kept tokens: 0.3, 0.3, 0.1 (the hole's 9 left out) and -0.3
    log_ratio = torch.tensor([[-0.5, -0.1, 0.0], [-0.5, -0.1, 0.0], [-0.2, 0.0, -9.0], [0.3, 0.3, 0.0]])
    advantages = torch.tensor([[-1.0], [1.0], [-1.0], [-1.0]]).expand(4, 3)
    kept = torch.tensor([[1, 1, 0]]).expand(4, 3).bool()
    inputs = select(kept, log_ratio), select(kept, advantages), kept
    assert off_policy_sequence_mask(*inputs, 0.2).int().tolist() == [[0, 0, 0], *[[1, 1, 0]] * 3]
    assert off_policy_sequence_mask(*inputs, 0.31).equal(kept)


def test_two_sided_delta_is_dual_clip():
    logprobs, log_ratio, _, _ = random_inputs(num_rows=50, spread=2.0)
    leaf, x = rule_tokens(logprobs, log_ratio, logprobs.roll(1) + 1.0)
    r, a = x.log_ratio.exp(), x.advantages
    two_sided = -torch.minimum(a * r.clamp(max=4.0), a * r.clamp(0.8, 1.2))
    ours, clipped = surrogate(
        x.logprobs, x.log_ratio, a, Bounds((None, log(1.2)), (log(0.8), log(4.0)), "clamp")
    )
    assert clipped.dual.any()
    torch.testing.assert_close(ours, two_sided)
    gradients = (torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0] for y in (ours, two_sided))
    torch.testing.assert_close(*gradients)


@pytest.fixture
def register(monkeypatch):
    """register_rule, undone when the test is over."""
    monkeypatch.setattr("rl.rules.RULES", dict(RULES))
    monkeypatch.setattr("rl.rules.RULE_KNOBS", dict(RULE_KNOBS))
    return register_rule


def spoilt(per_token=lambda y: y, clipped=lambda counters: counters):
    """REINFORCE as a plug-in, its token losses and counters changed."""

    def rule(x, knobs):
        counters = Clipped(*[torch.zeros_like(x.kept)] * 4)
        return RuleLoss(per_token(-x.advantages * x.logprobs * knobs.get("scale", 1.0)), clipped(counters))

    return rule


def test_a_plug_in_is_used_under_its_name_with_its_knobs(register):
    register("mine", spoilt(lambda y: torch.where(y == 0, nan, y)), scale=2.0)  # NaN where nothing is kept
    inputs = torch.tensor([[[-1.0, -3.0]], [[0.0, 0.0]], [[1.0, 1.0]], [[1.0, 0.0]]])
    assert [run("mine", *inputs)[i].tolist() for i in (0, 1)] == [[[2.0, 0.0]], [[-2.0, 0.0]]]
    assert run("mine", *inputs, knobs={"scale": 3.0})[1].tolist() == [[-3.0, 0.0]]
    for taken in ("mine", "sapo", "geo_mean", "ppo"):
        with pytest.raises(ValueError, match=f"rule '{taken}' exists already"):
            register(taken, spoilt())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            spoilt(lambda y: y.mean()),
            r"per_token \(\) torch.float64, expected \(1, 2\) torch.float32 or wider",
        ),
        (spoilt(lambda y: y.bfloat16()), r"per_token \(1, 2\) torch.bfloat16"),
        (spoilt(lambda y: y / (y - 1.0)), "is not finite at 1 of 2 kept tokens"),
        (spoilt(lambda y: y.detach()), "per_token without a gradient"),
        (spoilt(clipped=lambda c: c._replace(dual=c.dual.float())), r"clipped.dual \(1, 2\) torch.float32"),
        (spoilt(clipped=lambda c: c._replace(low=c.low[0])), r"clipped.low \(2,\) torch.bool"),
        (spoilt(clipped=tuple), "returned RuleLoss.*expected RuleLoss"),
        (lambda x, knobs: -x.logprobs, "returned tensor.*expected RuleLoss"),
    ],
)
def test_a_plug_in_that_breaks_the_contract_is_told_how(register, rule, message):
    register("mine", rule)
    with pytest.raises(ValueError, match=f"^rule 'mine' .*{message}"):
        run("mine", *torch.tensor([[[-1.0, -3.0]], [[0.0, 0.0]], [[1.0, 1.0]]]))


def test_wrong_names_and_numbers_are_told_with_the_right_ones():
    with pytest.raises(ValueError, match="unknown rule 'sappo'; did you mean 'sapo'"):
        run("sappo", *random_inputs())
    with pytest.raises(ValueError, match="unknown knob of rule 'sapo' 'tau_ned'; did you mean 'tau_neg'"):
        rule_knobs("sapo", {"tau_ned": 1.0})
    with pytest.raises(ValueError, match="tau_neg = inf of rule 'sapo': expected a finite number"):
        rule_knobs("sapo", {"tau_neg": inf})


def test_an_alias_is_its_rule():
    for alias, name in RULE_ALIASES.items():
        assert torch.equal(run(alias, *random_inputs())[0], run(name, *random_inputs())[0])
        assert rule_knobs(alias, {}) == RULE_KNOBS[name]


def test_the_tokens_of_a_rule_are_those_of_the_loss():
    names = ("kept", "known", "logprobs", "log_ratio", "advantages", "entropy", "rollout_logprobs")
    names += ("log_weight", "measured")
    loss_tokens = LossTokens(**{name: torch.tensor([i]) for i, name in enumerate(names)}, ref_logprobs=None)
    x = RuleTokens.of(loss_tokens)
    assert (x.kept, x.logprobs, x.log_ratio, x.advantages, x.anchor_logprobs) == (0, 2, 3, 4, 2 - 3)


@pytest.mark.parametrize(
    ("config", "name", "knobs"),
    [
        ({"policy_loss": "SAPO", "sapo_temperature_pos": 2.0}, "sapo", {"tau_pos": 2.0, "tau_neg": 1.05}),
        (
            {"policy_loss": "geo-mean", "epsilon_high": 0.3, "epsilon": 0.2},
            "gmpo",
            {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3},
        ),
        ({"policy_loss": "kl-cov", "frac": 0.2}, "kl_cov", {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.1}),
        ({"policy_loss": "dro", "dro_beta": 0.05}, "kimi", {"tau": 0.05}),
        ({"policy_loss": "kimi15", "tau": None}, "kimi", {"tau": 0.1}),
        ({"policy_loss": "topr", "importance_sampling_level": "product"}, "topr", {}),
        ({"policy_loss": "luspo", "loss_agg_mode": "seq-mean-token-sum"}, "luspo", RULE_KNOBS["luspo"]),
    ],
)
def test_a_golden_configuration_names_its_rule(config, name, knobs):
    around = {"loss_agg_mode": "seq-mean-token-mean", "C": 2.0}
    assert rule_of({**around, **config}) == (name, knobs, around)


@pytest.mark.parametrize(
    "config",
    [
        {"policy_loss": "ppo", "clip_ratio_low": 0.2},
        {"policy_loss": "sapo", "importance_sampling_level": "sequence"},
        {"policy_loss": "opmd", "tau": [1.0]},
    ],
)
def test_other_golden_configurations_are_not_offered(config):
    with pytest.raises(NotOfferedError):
        rule_of(config)


def test_a_setting_of_two_meanings_is_not_read_and_said():
    with pytest.warns(UserWarning, match=r"setting clip_ratio = 0.2 is not read"):
        assert rule_of({"policy_loss": "clip_cov", "clip_ratio": 0.2}).knobs == RULE_KNOBS["clip_cov"]


def test_every_rule_has_a_golden_name():
    assert set(RULES) == set(RULE_KNOBS) == set(SPELLINGS)
    assert [rule_of({"policy_loss": name}).name for name in RULES] == list(RULES)
