"""The golden files of kinds preference_loss, distribution and distill, computed from `inputs` and `config`.

The names that a file may use for a thing are listed where it is looked up. What is missing, or something
that the library lacks, raises NotOfferedError; a metric of an unknown name is warned of and not compared.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.numerics import MetricSums, add_metrics, metric_values
from rl.preference_rows import get_preference
from rl.preferences import PreferenceLoss, bradley_terry_loss, reference_point
from tests.rl.golden_config import Case, NotOfferedError, UnreadError
from tests.rl.golden_given import Tolerance, check, check_gradients, lookup, need, polluted, tensor

ROWS = {"sigmoid": "dpo", "sigmoid_norm": "dpo_norm", "kto_pair": "kto"}
BRADLEY_TERRY = ("bt", "bt_rm", "bradley_terry", "reward_model", "rm")
KNOBS = {
    "simpo_gamma": "gamma",
    "epsilon": "label_smoothing",
    "eps": "label_smoothing",
    "lambda_d": "desirable_weight",
    "lambda_u": "undesirable_weight",
    "lambda": "orpo_lambda",
    "lam": "orpo_lambda",
}
AVERAGE = ("average", "average_log_prob", "length_average", "length_normalize", "length_normalized")
Z0 = ("z0", "z_0", "z_ref", "kl", "kl_estimate", "reference_point")


def sides(inputs: Case, *joint: str) -> Any:
    """Rows 0..K-1 chosen and K..2K-1 rejected, given as one list or as two (chosen_NAME, NAME_w); None."""
    halves = [
        value
        for side in ("chosen|w", "rejected|l")
        for key, value in inputs.items()
        if (bare := re.sub(f"^({side})_|_({side})(?=_|$)", "", key)) in joint and bare != key
    ]
    found = lookup(joint, inputs)
    return found if found is not None else [*halves[0], *halves[1]] if len(halves) == 2 else None


def row_of(config: Case) -> tuple[str, Case]:
    """The row's name and its knobs."""
    config = {key.lower(): value for key, value in config.items()}
    loss_type, average = str(need(("loss_type", "loss"), config)).lower(), lookup(AVERAGE, config)
    name = ROWS.get(loss_type, loss_type)
    if name == "dpo" and average:
        name = "dpo_norm"
    other = ("loss_type", "loss", "reference_free", "margin", *AVERAGE, *Z0)
    knobs = {KNOBS.get(key, key): value for key, value in config.items() if key not in other}
    if name == "ipo" and average is not None:
        knobs["average_log_prob"] = bool(average)
    if name == "orpo" and "beta" in knobs:  # TRL's name for it
        knobs = {"orpo_lambda": knobs.pop("beta"), **knobs}
    ratio, gamma = knobs.get("gamma_beta_ratio"), knobs.get("gamma")
    if ratio is not None and gamma is not None and np.isclose(gamma, ratio * knobs["beta"]):
        del knobs["gamma"]  # the same margin twice
    return name, knobs


def preference(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """As it is, with garbage at mask 0, and split into micro-batches."""
    name, knobs = row_of(case["config"])
    if name in BRADLEY_TERRY:
        return bradley_terry(case, dtype, tolerance)
    forms = [(knobs, case["expected"])]
    if name == "ipo":
        sums = {**knobs, "average_log_prob": False}
        forms += [(sums, form) for key, form in case.get("variants", {}).items() if key.endswith("sum")]
    for form, expected in forms:
        try:
            row = get_preference(name, **form)
        except ValueError as error:
            raise NotOfferedError(str(error)) from error
        for garbage in (False, True):
            for splits in ((slice(None),), (slice(0, 1), slice(1, None))):
                loss, gradient, sums = evaluate(row, case, dtype, garbage=garbage, splits=splits)
                check(loss, expected["loss"], tolerance)
                check_gradients(gradient, expected, tolerance)
                check_metrics(row, case["id"], metric_values(sums), expected.get("metrics", {}), tolerance)
    return None


def evaluate(
    row: PreferenceLoss, case: Case, dtype: torch.dtype, *, garbage: bool, splits: tuple[slice, ...]
) -> tuple[Tensor, Tensor, MetricSums]:
    """Loss, gradient to the policy's log-probs and metric sums, with the pairs (rows) in micro-batches."""
    inputs = case["inputs"]
    policy = sides(inputs, "policy_logprobs", "logprobs")
    reference = sides(inputs, "ref_logprobs", "reference_logprobs")
    if policy is None or (reference is None and not row.reference_free):
        raise UnreadError(f"no log-probs of tokens in {sorted(inputs)}")
    mask = tensor(sides(inputs, "mask", "loss_mask"), dtype) > 0
    leaf = polluted(tensor(policy, dtype), mask, garbage).requires_grad_()
    refs = [] if row.reference_free else [polluted(tensor(reference, dtype), mask, garbage)]
    half = len(mask) // 2
    desirable = lookup(("desirable", "labels", "label", "is_desirable"), inputs)
    desirable = torch.arange(len(mask)) < half if desirable is None else tensor(desirable, dtype) > 0
    parts = []
    for part in splits:
        if row.loss_type == "kto":
            rows = (x[part] for x in (leaf, *refs, mask, desirable))
            parts.append(row.unpaired_loss(*rows, z0=z0_of(case, dtype), num_rows=len(mask)))
        else:
            pairs = (x[side][part] for x in (leaf, mask, *refs) for side in (slice(half), slice(half, None)))
            parts.append(row.loss(*pairs, num_pairs=half))
    loss = torch.stack([value for value, _ in parts]).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.all(gradient[~mask] == 0)
    return loss, gradient, add_metrics(sums for _, sums in parts)


def z0_of(case: Case, dtype: torch.dtype) -> float | Tensor:
    """Given, or of completions paired with other prompts."""
    inputs = case["inputs"]
    given = lookup(Z0, inputs, case["config"])
    if given is not None and not isinstance(given, str | bool):
        return float(np.mean(given))
    names = ("kl_logprobs", "kl_policy_logprobs"), ("kl_ref_logprobs", "ref_kl_logprobs"), ("kl_mask", "mask")
    return reference_point(*(tensor(need(name, inputs), dtype) for name in names))


def check_metrics(
    row: PreferenceLoss, case_id: str, values: dict[str, float], expected: Case, tolerance: Tolerance
) -> None:
    values = {name.removeprefix("preference/"): value for name, value in values.items()}
    values["margin_of_h"] = values.get("reward_margin", np.nan) / (
        row.orpo_lambda if row.loss_type == "orpo" else row.beta
    )
    for name, value in expected.items():
        short = re.sub("_mean$|s$", "", name.lower())
        # A file's margin may be of sums or of what the loss averages, and in nats or in rewards.
        margins = ("margin", "margin_of_h", "reward_margin")
        meant = margins if "margin" in short else (short, f"reward_{short}")
        known = [values[key] for key in meant if key in values]
        if not known:
            warnings.warn(f"{case_id}: metric {name} is not compared", stacklevel=2)
        elif not any(np.allclose(one, value, **tolerance) for one in known):
            raise AssertionError(f"{name}: {value} is none of {known}")


def bradley_terry(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    inputs, expected = case["inputs"], case["expected"]
    scores = sides(inputs, "scores", "rewards", "reward", "score", "r")
    if scores is None:
        raise UnreadError(f"no scores of pairs in {sorted(inputs)}")
    margin = lookup(("margin", "margins"), inputs, case["config"])
    leaf, half = tensor(scores, dtype).requires_grad_(), len(scores) // 2
    loss = bradley_terry_loss(leaf[:half], leaf[half:], None if margin is None else tensor(margin, dtype))
    check(loss, expected["loss"], tolerance)
    check_gradients(torch.autograd.grad(loss, leaf)[0], expected, tolerance)


CHECKS: dict[str, Callable[[Case, torch.dtype, Tolerance], None]] = {
    "preference_loss": preference,
}
"""What checks a file, by its `kind`."""
