"""Golden files of kind `numeric` that are no policy loss: group statistics, logits, log-space functions.

Every key of `expected` is computed from `inputs` and `config`, or the file is not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl.advantages import ADV_ESTIMATORS, STD_EPS, group_fractions, group_normalized
from rl.distributions import log1mexp
from rl.logprobs import entropy_of_logits
from rl.numerics import bounded_exp, group_statistics, k1, k2, k3
from tests.rl.golden_config import Case, NotOfferedError
from tests.rl.golden_given import Given, Tolerance

ESTIMATORS = {
    **{name: name for name in ADV_ESTIMATORS},
    "advantages_grpo": "grpo",
    "mean": "dr_grpo",
    "reinforce_baseline": "dr_grpo",
    "lite_ppo": "lite_ppo",
}
REWARD_NAMES = ("rewards", "rewards_float32", "scores", "rewards_float64")


def numeric(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Compare every expected value with its computation."""
    given = Given(case["inputs"], case["config"], dtype)
    compute = computation(given)
    for name, value in leaves(case["expected"]):
        if name.startswith(("max_rel_error", "note", "tolerance")):
            continue  # what the file allows, not what it expects
        found = compute(name)
        found = found.detach().double().numpy() if isinstance(found, Tensor) else np.array(found, np.float64)
        expected = np.array(value, np.float64)
        if found.shape != expected.shape and found.size == expected.size:
            found = found.reshape(expected.shape)
        np.testing.assert_allclose(found, expected, **tolerance)


def leaves(expected: Case, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in expected.items():
        found += (
            leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
        )
    return found


def computation(given: Given) -> Callable[[str], Any]:
    """The function from an expected name to its value, by what the file gives."""
    inputs = given.inputs
    if any(name in inputs for name in REWARD_NAMES):
        return of_rewards(given)
    if "logits" in inputs:
        return of_logits(given)
    if "mask" not in inputs and ("d" in inputs or "x" in inputs):
        return of_numbers(given)
    raise NotOfferedError(f"numeric inputs {sorted(inputs)}")


def of_rewards(given: Given) -> Callable[[str], Any]:
    rewards = np.array(given.get(*REWARD_NAMES), np.float64)
    groups = np.array(given.get("group_ids", "groups", "uid", default=[0] * len(rewards)))
    eps = given.get("eps", default=STD_EPS)
    eps = STD_EPS if isinstance(eps, list) else float(eps)
    statistics = group_statistics(rewards, groups)
    _, first = np.unique(groups, return_index=True)
    uniform, singleton = group_fractions(rewards, groups)

    def compute(name: str) -> Any:
        last = name.split(".")[-1]
        owner = name.split(".")[0] if "." in name else given.get("adv_estimator", default="grpo")
        if last in ("advantages", "adv"):
            estimator = ESTIMATORS.get(owner, owner)
        elif last.removeprefix("advantages_").removeprefix("adv_") in ESTIMATORS:
            estimator = ESTIMATORS[last.removeprefix("advantages_").removeprefix("adv_")]
        else:
            estimator = ""
        if estimator == "grpo":
            return group_normalized(rewards, groups, eps=eps)
        if estimator in ADV_ESTIMATORS:
            return ADV_ESTIMATORS[estimator](rewards, groups)
        named = {
            "std": statistics.std[first],
            "group_std": statistics.std[first],
            "mean": statistics.mean[first],
            "group_mean": statistics.mean[first],
            "is_zero_std": bool(statistics.uniform.all()),
            "singleton_frac": singleton,
            "singleton_group_fraction": singleton,
            "zero_std_group_fraction": uniform,
            "zero_std_group_frac": uniform,
        }
        if last not in named:
            raise NotOfferedError(f"{name} of rewards")
        return named[last]

    return compute


def of_logits(given: Given) -> Callable[[str], Any]:
    logits = torch.tensor(np.array(given.get("logits"), np.float64), dtype=given.dtype)
    tokens = given.get("tokens", "token_ids", "targets", "labels", "actions", default=None)

    def compute(name: str) -> Any:
        if "entropy" in name and "grad" not in name:
            return entropy_of_logits(logits)
        if "grad" in name and "entropy" in name:
            leaf = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(entropy_of_logits(leaf).mean(), leaf)
            return gradient
        if name in ("logprobs", "log_probs", "logp", "log_softmax"):
            logprobs = logits.log_softmax(-1)
            if tokens is None:
                return logprobs
            return logprobs.gather(-1, torch.tensor(tokens)[..., None])[..., 0]
        if name in ("lse", "logsumexp", "log_z"):
            return logits.logsumexp(-1)
        raise NotOfferedError(f"{name} of logits")

    return compute


def of_numbers(given: Given) -> Callable[[str], Any]:
    x = torch.tensor(np.array(given.get("d", "x"), np.float64), dtype=given.dtype)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "k1": k1,
        "k2": k2,
        "k3": k3,
        "log1mexp": log1mexp,
        "logsigmoid": logsigmoid,
        "log_sigmoid": logsigmoid,
        "exp": bounded_exp,
        "ratio": bounded_exp,
    }

    def compute(name: str) -> Any:
        function = functions.get(name.removeprefix("grad_").removesuffix("_grad"))
        if function is None:
            raise NotOfferedError(f"{name} of numbers")
        if "grad" not in name:
            return function(x)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
        return gradient

    return compute
