"""The golden files of kinds numeric and metric: each by what its inputs are.

Every key of `expected` must be among what is computed from `inputs` and `config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl.advantages import STD_EPS, group_fractions
from rl.critic import value_loss
from rl.distributions import log1mexp, log_odds
from rl.losses import ROLLOUT_IS, RatioLevel, at_level, kl_penalty, rollout_weights
from rl.numerics import bounded_exp, group_statistics, k1, k2, k3, metric_values, select
from tests.rl import golden_advantages, golden_policy, golden_preferences
from tests.rl.golden_config import Case, UnreadError
from tests.rl.golden_distributions import LOGITS, leaves, of_logits
from tests.rl.golden_given import Given, Outputs, Tolerance, compare, lookup, tensor

REWARDS = ("rewards", "rewards_float32", "scores", "rewards_float64", "reward")
OF_REWARDS = ("grpo", "dr_grpo", "rloo", "lite_ppo", "reinforce_plus_plus_baseline", "opo", "gpg")
OF_REWARDS += ("maxrl", "grpo_passk", "opmd")
NUMBERS = ("d", "x", "delta", "deltas", "log_ratio", "log_ratios", "diff", "differences", "logits_diff", "z")
NEGATED = ("logp_minus_ref", "logprob_minus_ref", "policy_minus_ref", "l_minus_ref", "minus_d")
NUMBERS += NEGATED
COUNTS = ("T", "num_tokens", "n_tokens", "length", "seq_len", "sequence_length", "N", "n", "lengths")
DRIFTS = ("delta", "drift", "d", "delta_per_token", "drift_per_token", "per_token_drift", "per_token_delta")
DRIFTS += ("per_token_log_ratio", "log_ratio", "log_ratio_per_token", "mean_delta", "eps")
POLICY = {*golden_policy.TENSORS["logprobs"], *golden_policy.TENSORS["old_logprobs"]}


def numeric(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Compare every expected value with its computation; inputs may be several cases, by name."""
    inputs, expected = case["inputs"], case["expected"]
    parts = {
        key: x for key, x in inputs.items() if isinstance(x, dict) and isinstance(expected.get(key), dict)
    }
    for name, part in parts.items():
        shared = {key: x for key, x in inputs.items() if key not in parts}
        numeric({**case, "inputs": {**shared, **part}, "expected": expected[name]}, dtype, tolerance)
    rest = {key: x for key, x in expected.items() if key not in parts}
    alike = {key: x for key, x in inputs.items() if key not in parts and isinstance(x, dict) and "mask" in x}
    for part in alike.values():  # padded, permuted or split: all must give the same
        shared = {key: x for key, x in inputs.items() if key not in {*parts, *alike}}
        one_case({**case, "inputs": {**shared, **part}, "expected": rest}, dtype, tolerance)
    if (rest or not parts) and not alike:
        one_case({**case, "expected": rest}, dtype, tolerance)


def one_case(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    inputs, config, names = case["inputs"], case["config"], set(case["inputs"])
    if "loss_type" in config or names & {"policy_logprobs", "chosen_logprobs", "policy_chosen_logprobs"}:
        settings = {"loss_type": "sigmoid", **config}
        pairs = {**case, "config": settings, "inputs": long_pair(inputs)}
        return golden_preferences.preference(pairs, dtype, tolerance)
    if "policy_loss" in config or (POLICY & names and not {*NUMBERS} & names):
        config = {"policy_loss": rule_of_formula(case), "loss_agg_mode": "token-mean", **config}
        return golden_policy.policy_loss({**case, "config": config}, dtype, tolerance)
    expected = dict(leaves(case["expected"]))
    if {*REWARDS} & names:
        return of_rewards(case, expected, dtype, tolerance)
    logits = lookup(LOGITS[:-1], inputs)
    if logits is not None:
        return compare(of_logits(tensor(logits, dtype), inputs, config), expected, tolerance)
    if np.ndim(lookup(COUNTS, inputs, config)) <= 1 and lookup(COUNTS, inputs, config) is not None:
        return compare(of_drift(inputs, config, dtype), expected, tolerance)
    if {*NUMBERS} & names:
        allowed = case["expected"].get("max_rel_error_allowed_float32")
        if allowed is not None and dtype is torch.float32:
            tolerance = {"rtol": allowed, "atol": 0.0}
        return compare(of_numbers(inputs, dtype, case["id"], expected), expected, tolerance)
    raise UnreadError(f"numeric inputs {sorted(inputs)}")


def rule_of_formula(case: Case) -> str:
    """Without a name of the rule the formula says which: a clip is PPO's, a bare ratio is none."""
    said = " ".join(case.get("formula", ())).lower()
    if "gspo" in case["id"] or "gspo" in said:
        return "gspo"
    is_bare = said and not any(word in said for word in ("clip", "ppo", "min(", "max("))
    return "importance_sampling" if is_bare else "ppo"


def of_rewards(case: Case, expected: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Under each eps that is given; a variant that has rewards of its own is one more case."""
    inputs, config = case["inputs"], case["config"]
    also = [x for x in case["variants"].values() if isinstance(x, dict) and {*REWARDS} & x.keys()]
    for given, wanted in ((inputs, expected), *((x, x) for x in also)):
        key = next(name for name in REWARDS if name in given)
        number = np.float32 if key.endswith("float32") else np.float64
        rewards = np.array(given[key], number).astype(np.float64)
        groups = np.array(lookup(("group_ids", "groups", "uid"), given) or [0] * len(rewards))
        wanted = {name: x for name, x in wanted.items() if name != key}
        for eps in np.ravel(config.get("eps", STD_EPS)):
            settings = {**config, "eps": float(eps)}
            batch = {**inputs, "rewards": rewards.tolist(), "group_ids": groups.tolist()}
            compare(statistics(Given(batch, settings, torch.float64)), wanted, tolerance)
    del dtype  # rewards are float64 everywhere


def statistics(given: Given) -> Outputs:
    """What is known of groups, and the advantages of every estimator that compares within them."""
    rewards, groups = given.compared
    found = group_statistics(rewards, groups)
    _, first = np.unique(groups, return_index=True)
    uniform, singleton = group_fractions(rewards, groups)
    outputs: Outputs = {
        **dict.fromkeys(("std", "group_std", "stds"), (found.std, found.std[first])),
        **dict.fromkeys(("mean", "group_mean", "means"), (found.mean, found.mean[first])),
        "is_zero_std": (bool(found.uniform.all()), found.uniform, found.uniform[first]),
        **dict.fromkeys(("singleton_frac", "singleton_group_frac"), (singleton,)),
        **dict.fromkeys(("zero_std_frac", "zero_std_group_frac"), (uniform,)),
    }
    for name in OF_REWARDS:
        forms = golden_advantages.ESTIMATORS[name](given)["advantages"]
        for other in (name, *(alias for alias, own in golden_advantages.ALIASES.items() if own == name)):
            spellings = ("{}", "advantages_{}", "adv_{}", "{}_advantages", "{}.advantages", "{}.adv")
            outputs |= {spelling.format(other): forms for spelling in spellings}
    chosen = given.get("adv_estimator", default="grpo")
    return {**outputs, "advantages": outputs[chosen]}


def long_pair(inputs: Case) -> Case:
    """Two completions of T tokens that each have one log-prob, written out; other inputs as they are."""
    count = lookup(COUNTS, inputs)
    if count is None or "mask" in inputs:
        return inputs
    written = {
        key: [[x] * int(count)]
        for key, x in inputs.items()
        if np.ndim(x) == 0 and re.search("chosen|reject", key)
    }
    return {**inputs, **written}


def of_drift(inputs: Case, config: Case, dtype: torch.dtype) -> Outputs:
    """Rows of T tokens that all have one log-ratio: products, geometric means, and weights of them."""
    counts, drift = (lookup(names, inputs, config) for names in (COUNTS, DRIFTS))
    if np.ndim(drift) == 0 and drift is not None:
        pairs = [(count, drift) for count in np.ravel(counts)]
    elif np.ndim(counts) == 0 and drift is not None:
        pairs = [(counts, one) for one in drift]
    else:
        raise UnreadError(f"a row's length and its tokens' log-ratio in {sorted(inputs)}")
    high = float(lookup(("C", "C_high", "cap", "rollout_is_threshold"), config, inputs) or 2.0)
    columns: dict[str, list[float]] = {}
    for count, one in pairs:
        log_ratio = torch.full((1, int(count)), float(one), dtype=dtype)
        kept = torch.ones_like(log_ratio).bool()
        token, geo, product = (at_level(log_ratio, kept, x)[0, 0] for x in ("token", "sequence", "product"))
        parts: dict[str, Any] = {
            **{
                "log_product": product,
                "sum": product,
                "log_geo": geo,
                "mean": geo,
                "token_ratio": token.exp(),
            },
            **{
                name: bounded_exp(geo)
                for name in ("geo", "geometric", "geometric_ratio", "w_geo", "sequence")
            },
            **{name: product.double().exp() for name in ("product", "product_ratio", "w_seq")},
            "clamped": bounded_exp(product),
        }
        for name, correction in ROLLOUT_IS.items():
            weights = rollout_weights(log_ratio, kept, correction, low=1 / high, high=high)
            parts[name] = weights.weight[0, 0]
        for name, value in parts.items():
            columns.setdefault(name, []).append(float(value))
    return {name: (values,) for name, values in columns.items()}


def of_numbers(inputs: Case, dtype: torch.dtype, about: str, expected: Case) -> Outputs:
    """Log-space functions of numbers, with their gradients; at mask 0 a number takes no part.

    A bare `value` or `grad` is of the function that the file is about, or that else is expected: exp.
    """
    sign = 1.0 if {*NUMBERS[: -len(NEGATED)]} & inputs.keys() else -1.0  # d is the reference less the policy
    x = sign * tensor(lookup(NUMBERS, inputs), dtype)
    given = inputs.get("mask")
    mask = torch.ones_like(x).bool() if given is None else tensor(given, dtype) > 0
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        **{"k1": k1, "k2": k2, "k3": k3, "log1mexp": log1mexp, "logsigmoid": logsigmoid},
        **{"exp": bounded_exp, "ratio": bounded_exp, "log_odds": log_odds},
        "log_sigmoid": logsigmoid,
        **{f"unbiased_{name}": unbiased(name) for name in ("k1", "k2", "k3")},
    }
    outputs: Outputs = {}
    for name, function in functions.items():
        leaf = x.clone().requires_grad_()
        values = select(mask, function(select(mask, leaf)))
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        finite = bool(values.isfinite().all() and gradient.isfinite().all())
        mean = values.sum() / mask.sum().clamp(min=1)
        outputs |= {name: (values, values.sum(), mean), f"{name}_finite": (finite,)}
        slope = (sign * gradient, sign * gradient / mask.sum().clamp(min=1))  # to what the file gives
        outputs |= dict.fromkeys((f"grad_{name}", f"{name}_grad", f"{name}_gradient"), slope)
    rows, kept = (y[None] if y.dim() == 1 else y for y in (select(mask, x), mask))
    levels: dict[RatioLevel, tuple[str, ...]] = {
        "product": ("product", "w_seq", "product_ratio"),
        "sequence": ("geo", "w_geo", "seq_ratio"),
    }
    for level, names in levels.items():
        logs = at_level(rows, kept, level).sum(1) / kept.sum(1).clamp(min=1)
        outputs |= dict.fromkeys(names, (bounded_exp(logs), logs.double().exp())) | {f"log_{level}": (logs,)}
    words = (about, *expected)
    meant = max((x for x in functions if any(x in word for word in words)), key=len, default="ratio")
    slope = outputs[f"grad_{meant}"]
    rises = -sign if "k" in meant else sign  # a KL's d falls as the policy's log-prob rises
    outputs["grad_logprobs"] = tuple(rises * x for x in slope)
    bare = {"loss": outputs[meant], "value": outputs[meant], "finite": outputs[f"{meant}_finite"]}
    return outputs | bare | dict.fromkeys(("grad", "gradient", "grad_d", "grad_x"), slope)


def unbiased(name: str) -> Callable[[Tensor], Tensor]:
    """The estimator with the unbiased gradient, as a function of d = log π_ref - log π with r = 1."""

    def function(d: Tensor) -> Tensor:
        zero = torch.zeros_like(d)
        return kl_penalty(-d, zero, zero, kl_loss_type=name, kl_gradient="unbiased")

    return function


def metric(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Whatever metrics the inputs give rise to."""
    inputs, config = case["inputs"], case["config"]
    expected = dict(leaves({**case["expected"], **case["expected"].get("metrics", {})}))
    expected = {name: x for name, x in expected.items() if not name.startswith("metrics.")}
    given, outputs = Given(inputs, config, dtype), dict[str, tuple[Any, ...]]()
    if {*REWARDS} & inputs.keys() and {"group_ids", "groups", "uid"} & inputs.keys():
        outputs |= statistics(Given(inputs, config, torch.float64))
    if "returns" in inputs and {"values", "vpreds", "old_values"} & inputs.keys():
        values, returns = (
            torch.from_numpy(given.array(*x)).to(dtype)
            for x in (("values", "vpreds", "old_values"), ("returns",))
        )
        values, returns = (x[None] if x.dim() == 1 else x for x in (values, returns))
        mask = torch.from_numpy(given.mask).reshape(values.shape) if "mask" in inputs else values == values
        _, sums = value_loss(values, values, returns, mask, cliprange_value=None, num_tokens=int(mask.sum()))
        outputs |= {name.removeprefix("critic/"): (x,) for name, x in metric_values(sums).items()}
    if POLICY & inputs.keys():
        names = {"logprobs": given.get(*golden_policy.TENSORS["logprobs"], "old_logprobs"), **inputs}
        settings = {"policy_loss": "ppo", "loss_agg_mode": "token-mean", **config}
        algorithm = golden_policy.row_of(settings, case["id"])
        for splits in golden_policy.SPLITS:
            made = golden_policy.found(algorithm, names, dtype, garbage=True, splits=splits)
            for name in [*made]:  # a metric may be of the update's ratios, of the engine's, or of the weights
                gaps = (made.get(f"{place}_{name}", ()) for place in ("gap", "gap_is_weight"))
                made[name] = (*made[name], *(x for forms in gaps for x in forms))
            compare({**outputs, **made}, expected, tolerance)
    elif outputs:
        compare(outputs, expected, tolerance)
    else:
        raise UnreadError(f"a metric of {sorted(inputs)}")


CHECKS = {"numeric": numeric, "metric": metric}
"""What checks a file, by its `kind`."""
