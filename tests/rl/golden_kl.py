"""The golden files of kind kl: estimators as losses, and their exact expectations over a small vocabulary."""

from __future__ import annotations

import re
from typing import get_args

import torch
from torch import Tensor

from rl.algorithms import PolicyGradient, get_algorithm
from rl.distributions import forward_kl, reverse_kl
from rl.losses import KlLossType, kl_penalty
from tests.rl.golden_config import Case, UnreadError, kl_knobs
from tests.rl.golden_distributions import leaves
from tests.rl.golden_given import Outputs, Tolerance, check, compare, lookup, tensor
from tests.rl.golden_policy import SPLITS, check_everywhere, found, tensors_of

SIDES = {
    "policy": ("policy", "pi", "p", "student", "theta", "current", "new"),
    "reference": ("ref", "reference", "q", "pi_ref", "teacher"),
    "sampler": ("old", "pi_old", "rollout", "mu", "sampler", "behavior"),
}
"""What a distribution is called, alone or beside `logits`, `logprobs` or `probs`."""
WEIGHTED = r"k[123](\+|p)|plus|unbiased|ratio|_is(_|$|\.)|weigh|times|correct"


def kl(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Exact where distributions are given whole, else of sampled tokens."""
    policy = distribution_of(case["inputs"], "policy", dtype)
    if policy is None or {"mask", "old_logprobs"} & case["inputs"].keys():
        return sampled(case, dtype, tolerance)
    expected = {canonical(name): x for name, x in leaves(case["expected"])}
    return compare(expectations(case["inputs"], policy, dtype), expected, tolerance)


def distribution_of(inputs: Case, side: str, dtype: torch.dtype) -> Tensor | None:
    """Logits, given as such or as log-probs or probabilities; None."""
    kinds = ("logits", "logprobs", "log_probs", "logp", "probs", "probabilities")
    names = [f"{name}_{kind}" for name in SIDES[side] for kind in kinds]
    names += [f"{kind}_{name}" for name in SIDES[side] for kind in kinds]
    given = lookup((*names, *SIDES[side], *(("logits",) if side == "policy" else ())), inputs)
    if given is None:
        return None
    x = tensor(given, dtype)
    is_probability = bool((x >= 0).all() and torch.allclose(x.sum(-1), torch.ones_like(x.sum(-1))))
    return x.log() if is_probability else x


def expectations(inputs: Case, policy: Tensor, dtype: torch.dtype) -> Outputs:
    """Each estimator as a loss, with its gradient to the policy's logits, weighed by the sampler's chances.

    Every token of the vocabulary is one sample; the sampler is the policy itself unless it is given.
    """
    reference, sampler = (distribution_of(inputs, side, dtype) for side in ("reference", "sampler"))
    if reference is None:
        raise UnreadError(f"no reference in {sorted(inputs)}")
    sampler = policy if sampler is None else sampler
    outputs: Outputs = {}
    weight = sampler.softmax(-1)
    for name in get_args(KlLossType):
        for gradient in ("naive", "unbiased"):
            leaf = policy.clone().requires_grad_()
            logprobs = leaf.log_softmax(-1)
            ratio = logprobs - sampler.log_softmax(-1)
            knobs = {"kl_loss_type": name, "kl_gradient": gradient}
            penalty = kl_penalty(logprobs, reference.log_softmax(-1), ratio, **knobs)
            value = (weight * penalty).sum(-1)
            key = f"{name}{'+' if gradient == 'unbiased' else ''}"
            outputs[key] = (value, value.mean())
            outputs[f"grad_{key}"] = (torch.autograd.grad(value.sum(), leaf)[0],)
    for key, divergence in (("reverse", reverse_kl), ("forward", forward_kl)):
        leaf = policy.clone().requires_grad_()
        value = divergence(leaf.log_softmax(-1), reference.log_softmax(-1))
        outputs[key] = (value, value.mean())
        outputs[f"grad_{key}"] = (torch.autograd.grad(value.sum(), leaf)[0],)
    return outputs


def canonical(name: str) -> str:
    """`expected_grad_k3` and `k3.grad` are grad_k3, with an importance weight k3+; a plain kl is reverse."""
    short = name.lower()
    grad = "grad_" if "grad" in short else ""
    if estimator := re.search(r"k[123]", short):
        weighted = re.search(WEIGHTED, short)
        return f"{grad}{estimator[0]}{'+' if weighted else ''}"
    if re.search("forward|ref_pi|kl_ref_policy", short):
        return f"{grad}forward"
    if re.search("reverse|exact|true|kl|pi_ref", short):
        return f"{grad}reverse"
    return name


def sampled(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """The estimators as losses: what is expected off policy, and each of the variants on policy."""
    inputs, config, expected = case["inputs"], case["config"], case["expected"]
    on_policy = {**inputs, "old_logprobs": tensors_of(inputs, dtype)[1]["logprobs"].tolist()}
    named = {key: x for key, x in {**case["variants"], **expected}.items() if is_estimator(key)}
    rest = {key: x for key, x in expected.items() if key not in named}
    metrics = {**rest.pop("metrics", {})}
    forms = [(kl_row(name), on_policy, form) for name, form in named.items()]
    if rest:
        weighted = config.get("importance_weighted", True)
        row = kl_row(str(config.get("kl_loss_type", "k3+")))
        forms.append((row, inputs if weighted else on_policy, rest))
    for row, given, form in forms:
        form = form if isinstance(form, dict) else {"loss": form}
        check_everywhere(row, given, {**form, "metrics": {}}, dtype, tolerance)
    splits = SPLITS[0]
    naive = {x: found(kl_row(x), inputs, dtype, garbage=True, splits=splits) for x in get_args(KlLossType)}
    compare({f"kl_{name}": outputs["loss"] for name, outputs in naive.items()}, metrics, tolerance)
    for name in {"kl_k1", "kl_k3"} & metrics.keys():
        check(naive["k1"][name][0], metrics[name], tolerance)  # as it is logged


def is_estimator(name: str) -> bool:
    return re.fullmatch(r"k[123]\+?|low_var_kl", name) is not None


def kl_row(name: str) -> PolicyGradient:
    """The KL alone: the policy's own term is 0 with advantages of 0."""
    return get_algorithm("reinforce", kl_loss_coef=1.0, loss_agg_mode="token-mean", **kl_knobs(name))


CHECKS = {"kl": kl}
"""What checks a file, by its `kind`."""
