"""The golden files of kinds distribution and distill: entropies, sampling log-probs, z-loss, divergences."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.distributions import (
    distillation_loss,
    generalized_jsd,
    sampling_logprobs,
    top_tokens,
    z_loss,
)
from rl.logprobs import entropy_of_logits
from tests.rl.golden_config import Case, UnreadError
from tests.rl.golden_given import (
    ALLOWANCE,
    Outputs,
    Tolerance,
    check,
    check_gradients,
    compare,
    lookup,
    need,
    polluted,
    tensor,
)

COEFS = ("z_loss_coef", "z_loss_coeff", "z_coef", "lse_square_scale", "coef", "coeff", "c")
TOKENS = ("tokens", "token_ids", "targets", "actions", "sampled", "ids", "labels", "target", "token", "index")
LOGITS = ("logits", "logits_bf16", "logits_float32", "logits_bfloat16", "x")


def distribution(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Sampling log-probs where the file is of those; else all that is computed of logits."""
    inputs, config, expected = case["inputs"], case["config"], case["expected"]
    logits = tensor(need(LOGITS, inputs), dtype)
    if "sampling" in case["id"] or {"temperature", "T", "top_k", "top_p"} & {*config, *inputs}:
        return sampled(case, logits, tolerance)
    expected = {**expected, **expected.get("metrics", {})}
    expected.pop("metrics", None)
    return compare(of_logits(logits, inputs, config), expected, tolerance)


def of_logits(logits: Tensor, inputs: Case, config: Case) -> Outputs:
    """Entropies, log-probs, log Z and the z-loss of logits (..., V), with their gradients."""
    mask, logprobs = mask_of(inputs, logits), sampling_logprobs(logits)
    tokens = lookup(TOKENS, inputs)
    leaf = polluted(logits, mask, garbage=True).requires_grad_()
    loss = z_loss(leaf, mask, coef=float(lookup(COEFS, config, inputs) or 1.0))
    outputs: Outputs = {
        "z_loss": (loss,),
        "grad_logits": (torch.autograd.grad(loss, leaf)[0],),
        "log_softmax": (logprobs,),
        "logprobs": (logprobs,),
    }
    if tokens is not None:
        index = torch.tensor(tokens).reshape(logits.shape[:-1])
        outputs["logprobs"] = (logprobs.gather(-1, index[..., None])[..., 0], logprobs)
    leaf = logits.clone().requires_grad_()
    entropy = entropy_of_logits(leaf)
    outputs |= {"entropy": (entropy, entropy.mean()), "entropy_mean": (entropy.mean(),)}
    for name, total in (("mean", entropy.mean()), ("sum", entropy.sum())):
        (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
        outputs[f"grad_logits_of_{name}"] = outputs[f"grad_entropy_{name}"] = (gradient,)
    gradients = (*outputs["grad_logits_of_mean"], *outputs["grad_logits_of_sum"])
    outputs |= dict.fromkeys(("grad_entropy", "entropy_grad", "grad_logits_of_entropy"), gradients)
    outputs["finite"] = (bool(entropy.isfinite().all() and gradients[0].isfinite().all()),)
    is_z = any("z" in key for key in (*config, *inputs)) or lookup(COEFS, config, inputs) is not None
    if is_z:
        outputs |= {"loss": (loss,), "grad": outputs["grad_logits"]}
    else:
        outputs |= {"grad_logits": gradients, "grad": gradients}
    words = ("logp", "log_probs", "logprob")
    return outputs | dict.fromkeys(words, outputs["logprobs"]) | {"entropies": outputs["entropy"]}


def mask_of(inputs: Case, logits: Tensor) -> Tensor:
    mask = lookup(("mask", "loss_mask"), inputs)
    return torch.ones(logits.shape[:-1]).bool() if mask is None else tensor(mask, torch.float64) > 0


def sampled(case: Case, logits: Tensor, tolerance: Tolerance) -> None:
    """Each expected list by its name: raw is of the logits, scaled of logits / T, others of what is left."""
    places = case["config"], case["inputs"]
    temperature = float(lookup(("temperature", "T", "tau"), *places) or 1.0)
    filters = {name: lookup((name,), *places) for name in ("top_k", "top_p")}
    filters = {name: knob for name, knob in filters.items() if knob is not None}
    for key, value in leaves(case["expected"]):
        own = {name: knob for name, knob in filters.items() if name in key} or filters
        knobs = {} if re.search("raw|scaled|temperature|full|trainer", key) else own
        kept = top_tokens(logits / temperature, **own)
        if re.search("(kept|keep|in_set)(?!_mass)(?!_prob)|mask", key):
            sets = [row.nonzero()[:, 0].tolist() for row in kept.reshape(-1, kept.shape[-1])]
            compare({key: (kept, sets, kept.sum(-1))}, {key: value}, tolerance)
            continue
        values = sampling_logprobs(logits, temperature=1.0 if "raw" in key else temperature, **knobs)
        whole = sampling_logprobs(logits, temperature=temperature)
        mass = torch.where(kept, whole.exp(), 0.0).sum(-1)
        tokens = lookup(TOKENS, case["inputs"])
        forms = [values]
        if tokens is not None:
            index = torch.tensor(tokens).reshape(logits.shape[:-1])[..., None]
            forms.append(values.gather(-1, index)[..., 0])
        outputs: Outputs = {"mass": (mass, mass.log())}
        named = re.search("logp|log_p|raw|process|scaled", key)
        if re.search("mass|ratio|(^|_)S(_|$)", key):
            outputs[key] = (mass, mass.log(), 1 / mass, -mass.log())
        elif re.search("entropy", key):
            outputs[key] = (entropy_of_logits(values),)
        elif named:
            outputs[key] = tuple(forms)
        compare(outputs, {key: value}, tolerance)


def leaves(expected: Case, prefix: str = "") -> list[tuple[str, Any]]:
    """Every output by its name, those of a nested group under both."""
    found: list[tuple[str, Any]] = []
    for name, value in expected.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{name}.")
        elif not ALLOWANCE.match(name):
            found.append((f"{prefix}{name}", value))
    return found


def distill(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """The divergence at the beta of the config, and at each that a key of `expected` or `variants` names."""
    inputs, config, expected = case["inputs"], case["config"], case["expected"]
    nested = {key: x for key, x in expected.items() if isinstance(x, dict) and beta_of(key) is None}
    flat = {key: x for form in nested.values() for key, x in form.items()}
    named = {**case.get("variants", {}), **expected, **flat}
    forms = [(beta, named[key]) for key in named if (beta := beta_of(key)) is not None]
    own = lookup(("beta", "jsd_beta", "alpha", "lmbda"), config, inputs)
    if isinstance(own, list):  # one number for each
        losses = need(("loss", "losses", "jsd", "values", "divergence"), expected)
        forms += list(zip(map(float, own), losses, strict=True))
    else:
        beta = 0.5 if own is None else float(own)
        losses = {key: x for key, x in expected.items() if re.match("loss|g?jsd$|divergence", key)}
        losses = {key: x for key, x in losses.items() if not isinstance(x, dict)}
        grads = {key: x for key, x in expected.items() if key.startswith("grad") and beta_of(key) is None}
        forms += [(beta, {"loss": loss, **grads}) for loss in losses.values()]
    unread = [key for key in {**expected, **flat} if key not in nested and not is_read(key)]
    if unread or not forms:
        raise UnreadError(f"{', '.join(unread) or 'no divergence'} in {sorted(expected)}")
    student = tensor(need(("student_logits", "policy_logits", "logits", "student"), inputs), dtype)
    teacher = tensor(need(("teacher_logits", "ref_logits", "teacher"), inputs), dtype)
    mask = mask_of(inputs, student)
    temperature = float(lookup(("temperature", "T"), config, inputs) or 1.0)
    for beta, form in forms:
        form = form if isinstance(form, dict) else {"loss": form}
        leaf, constant = (polluted(x, mask, garbage=True) for x in (student, teacher))
        leaf.requires_grad_()
        loss = distillation_loss(leaf, constant, mask, beta=beta, temperature=temperature, chunk_size=2)
        value: Any = form.get("loss")
        if np.ndim(value):  # of each token
            per_token = generalized_jsd(leaf[mask], constant[mask], beta=beta, temperature=temperature)
            check(per_token, np.array(value)[mask.numpy()], tolerance)
        elif value is not None:
            check(loss, value, tolerance)
        check_gradients(torch.autograd.grad(loss, leaf)[0], form, tolerance)


def is_read(key: str) -> bool:
    """Whether `distill` compares what is expected under this name."""
    known = "loss|g?jsd$|divergence|grad|values$|note|comment"
    return beta_of(key) is not None or re.match(known, key) is not None


def beta_of(key: str) -> float | None:
    """0 in forward_kl, 1 in reverse_kl, b in beta_b, jsd_b, beta=b and b itself (0.5, 0_5 or 0p5)."""
    if "forward" in key or "reverse" in key:
        return float("reverse" in key)
    found = re.search(r"(?:beta|jsd|^)_?=?_?([01](?:[._p]\d+)?)$", key)
    return float(re.sub("[_p]", ".", found[1])) if found else None


CHECKS = {"distribution": distribution, "distill": distill}
"""What checks a file, by its `kind`."""
