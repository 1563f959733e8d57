"""The golden files of kind preference_loss, computed from `inputs` and `config`.

The names that a file may use for a thing are listed where it is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.numerics import MetricSums, add_metrics, mean_share, metric_values
from rl.preference_rows import PREFERENCES, get_preference
from rl.preferences import USED_BY, PreferenceLoss, bradley_terry_loss, reference_point
from tests.rl.golden_config import Case, NotOfferedError, UnreadError, say_unread
from tests.rl.golden_given import Outputs, Tolerance, compare, lookup, need, polluted, tensor

ROWS = {
    **dict.fromkeys(("sigmoid", "dpo_sigmoid", "cpo", "conservative_dpo", "dpo_label_smoothing"), "dpo"),
    **dict.fromkeys(("sigmoid_norm", "dpo_length_norm", "dpo_length_normalized", "length_norm"), "dpo_norm"),
    **dict.fromkeys(("robust_dpo", "dpo_robust", "sigmoid_robust", "rdpo"), "robust"),
    **dict.fromkeys(("slic", "slic_hinge", "dpo_hinge"), "hinge"),
    **dict.fromkeys(("kto_pair", "kto_unpaired"), "kto"),
}
BRADLEY_TERRY = ("bt", "bt_rm", "bradley_terry", "reward_model", "rm", "bt_reward_model", "bt_loss")
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
LOGPROBS = ("logprobs", "logps", "logprob", "log_probs", "logp")
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


def said(config: Case, about: str) -> str:
    """What the config calls the loss, or the file's id."""
    given = lookup(("loss_type", "loss", "preference_loss"), config) or about.removeprefix("pref_")
    return str(given).lower().replace("-", "_")


def row_of(config: Case, about: str) -> tuple[str, Case]:
    """The row's name and its knobs."""
    config = {key.lower(): value for key, value in config.items()}
    loss_type, average = said(config, about), lookup(AVERAGE, config)
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
    name, knobs = row_of(case["config"], case["id"])
    if name in BRADLEY_TERRY:
        return bradley_terry(case, dtype, tolerance)
    if name not in PREFERENCES:
        raise NotOfferedError(f"preference loss {name!r}")
    forms = [(knobs, case["expected"])]
    if name == "ipo":
        sums = {**knobs, "average_log_prob": False}
        forms += [(sums, form) for key, form in case["variants"].items() if key.endswith("sum")]
    for form, expected in forms:
        row = get_preference(name, **effective(name, form))
        expected = {**expected, **expected.get("metrics", {})}
        expected.pop("metrics", None)
        for garbage in (False, True):
            for splits in ((slice(None),), (slice(0, 1), slice(1, None))):
                loss, gradient, sums = evaluate(row, case, dtype, garbage=garbage, splits=splits)
                outputs = named(row, metric_values(sums)) | sides_of("grad", gradient)
                outputs |= {"loss": (loss,), "grad_logprobs": (gradient,)}
                compare(outputs, expected, tolerance)
    return None


def effective(name: str, knobs: Case) -> Case:
    """`knobs` without those that have no effect in this loss."""
    idle = [knob for knob in knobs if PREFERENCES[name].loss_type not in USED_BY.get(knob, ())]
    say_unread({knob: knobs[knob] for knob in idle})
    return {knob: value for knob, value in knobs.items() if knob not in idle}


def sides_of(name: str, values: Tensor) -> Outputs:
    """Of all rows, and of the two sides of the pairs, however they are called."""
    half, outputs = len(values) // 2, dict[str, tuple[Any, ...]]()
    for side, part in (("chosen", values[:half]), ("rejected", values[half:])):
        kinds = ("", "_logprobs", "_scores", "_rewards", "_logps", "_score", "_reward")
        outputs |= {f"{name}_{side}{kind}": (part,) for kind in kinds}
        outputs |= {f"{name}{kind}_{side}": (part,) for kind in (*kinds, "_policy", "_r")}
        outputs |= {f"{name}_{letter}_{side}": (part,) for letter in ("r", "policy")}
    return outputs


def named(row: PreferenceLoss, values: dict[str, float]) -> Outputs:
    """Metrics by name. A margin may be of sums or of what the loss averages, and in nats or in rewards."""
    outputs: Outputs = {name.removeprefix("preference/"): (value,) for name, value in values.items()}
    if margins := [*outputs.get("margin", ()), *outputs.get("reward_margin", ())]:
        scale = row.orpo_lambda if row.loss_type == "orpo" else row.beta
        forms = (*margins, margins[-1] / scale)
        names = ("margin", "margin_mean", "mean_margin", "margins", "reward_margin", "reward_margin_mean")
        outputs |= dict.fromkeys((*names, "rewards_margin", "rewards_margins"), forms)
        accuracies = (*outputs["accuracy"], *outputs["reward_accuracy"])
        outputs |= dict.fromkeys(("accuracy", "reward_accuracy", "rewards_accuracies"), accuracies)
    for side in ("chosen", "rejected"):
        for name in ("reward", "logp"):
            forms: tuple[Any, ...] = outputs.get(f"{side}_{name}") or ()
            spellings = ("{0}_{1}s", "{1}s_{0}", "{1}_{0}", "{0}_{1}_mean", "{0}_{1}s_mean", "{1}s/{0}")
            outputs |= {spelling.format(side, name): forms for spelling in spellings}
    return outputs


def evaluate(
    row: PreferenceLoss, case: Case, dtype: torch.dtype, *, garbage: bool, splits: tuple[slice, ...]
) -> tuple[Tensor, Tensor, MetricSums]:
    """Loss, gradient to the policy's log-probs and metric sums, with the pairs (rows) in micro-batches."""
    inputs = case["inputs"]
    policy = sides(inputs, *(f"{side}{kind}" for side in ("policy_", "") for kind in LOGPROBS))
    reference = sides(inputs, *(f"{side}_{kind}" for side in ("ref", "reference") for kind in LOGPROBS))
    if reference is None and policy is not None:
        reference = np.zeros_like(policy)  # a comparison without a reference, as in CPO
    if policy is None:
        raise UnreadError(f"no log-probs of tokens in {sorted(inputs)}")
    given = sides(inputs, "mask", "loss_mask")
    if np.ndim(policy) == 1:  # one pair, without the lists of rows
        policy, reference, given = (
            None if x is None else np.reshape(x, (2, -1)) for x in (policy, reference, given)
        )
    mask = tensor(np.ones_like(policy) if given is None else given, dtype) > 0
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


def bradley_terry(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    inputs, expected = case["inputs"], case["expected"]
    scores = sides(inputs, "scores", "rewards", "reward", "score", "r")
    if scores is None:
        raise UnreadError(f"no scores of pairs in {sorted(inputs)}")
    margin = lookup(("margin", "margins"), inputs, case["config"])
    leaf, half = tensor(scores, dtype).requires_grad_(), len(scores) // 2
    loss = bradley_terry_loss(leaf[:half], leaf[half:], None if margin is None else tensor(margin, dtype))
    (gradient,) = torch.autograd.grad(loss, leaf)
    lead = (leaf[:half] - leaf[half:]).detach()
    outputs: Outputs = {"loss": (loss,), "grad_scores": (gradient,), "grad_rewards": (gradient,)}
    outputs |= sides_of("grad", gradient)
    shares = {"accuracy": lead > 0, "margin": lead, "margin_mean": lead, "reward_margin": lead}
    outputs |= {name: (mean_share(x, torch.ones_like(lead)).value(),) for name, x in shares.items()}
    expected = {**expected, **expected.get("metrics", {})}
    expected.pop("metrics", None)
    compare(outputs, expected, tolerance)


CHECKS: dict[str, Callable[[Case, torch.dtype, Tolerance], None]] = {
    "preference_loss": preference,
}
"""What checks a file, by its `kind`."""
