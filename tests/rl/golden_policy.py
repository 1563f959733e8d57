"""The golden files of kinds policy_loss and is_weights: as they are, with garbage at mask 0, and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.algorithms import PolicyGradient, get_algorithm
from rl.batch import PaddedLayout
from rl.losses import LOSS_AGG_MODES, ROLLOUT_IS, at_level, rollout_weights
from rl.numerics import bounded_exp, metric_values, select
from rl.rules import off_policy_sequence_mask
from tests.rl.golden_config import (
    INTERVALS,
    SPLIT,
    Case,
    UnreadError,
    algorithm_of,
    named_rule,
    thresholds,
)
from tests.rl.golden_given import GARBAGE, Outputs, Tolerance, check, compare, tensor
from tests.rl.golden_rules import rule_of
from tests.rl.making import evaluate, layout_of

PROXIMAL = ("prox_logprobs", "proximal_logprobs", "prox_logp", "proximal_logp")
TENSORS = {
    "logprobs": ("logprobs", "policy_logprobs", "new_logprobs", "current_logprobs", "log_probs", "logp"),
    "old_logprobs": (*PROXIMAL, "old_logprobs", "old_log_probs", "old_logp", "old"),
    "rollout_logprobs": (
        *("rollout_logprobs", "behavior_logprobs", "behave_logprobs", "sampler_logprobs"),
        *("rollout_log_probs", "inference_logprobs", "vllm_logprobs", "rollout", "mu"),
    ),
    "ref_logprobs": ("ref_logprobs", "reference_logprobs", "ref_log_probs", "ref_logp", "ref"),
    "teacher_logprobs": ("teacher_logprobs",),
    "advantages": ("advantages", "token_advantages", "sequence_advantages", "advantage", "adv", "rewards"),
    "entropy": ("entropy", "entropies", "token_entropy"),
}
"""What a file calls the tensors of a layout; a list with one number a row is that row's at every token."""
SPLITS = ((slice(None),), (slice(0, 3), slice(3, 4), slice(4, None)))
BATCH_RULES = ("clip_cov", "kl_cov")
"""Rules that are not the same when a batch is split, as their docstrings say."""
METRICS = {
    "seq_clip_frac": "clip_frac",
    "row_clip_frac": "clip_frac",
    "dual_clip_frac": "clip_frac_dual",
    "clip_frac_lower": "clip_frac_low",
    "clip_frac_upper": "clip_frac_high",
    "clip_frac_c": "clip_frac_dual",
    "pg_clip_frac": "clip_frac",
    "pg_clip_frac_lower": "clip_frac_dual",
    **dict.fromkeys(("capped_frac_pos", "capped_frac_positive"), "clip_frac_high"),
    **dict.fromkeys(("capped_frac_neg", "capped_frac_negative"), "clip_frac_dual"),
    **dict.fromkeys(("log_s_mean", "log_seq_ratio_mean"), "log_ratio_mean"),
    **dict.fromkeys(("log_s_std", "log_seq_ratio_std"), "log_ratio_std"),
    **dict.fromkeys(("log_s", "log_seq_ratio", "log_sequence_ratio", "mean_log_ratio"), "log_sequence"),
    **dict.fromkeys(("clipped_tokens", "num_clipped", "n_clipped", "num_clipped_tokens"), "num_clipped"),
    **dict.fromkeys(
        ("masked_tokens", "num_masked", "n_masked", "dropped_tokens", "num_dropped"), "num_masked"
    ),
    **dict.fromkeys(("n_dropped", "num_dropped_tokens", "rejected_tokens", "num_rejected"), "num_masked"),
    **dict.fromkeys(("kept_rows", "row_kept", "rows_kept", "keep_rows", "seq_mask", "row_mask"), "kept"),
    **dict.fromkeys(("u", "w", "is_weights", "rollout_is_weights", "weight"), "weights"),
    **dict.fromkeys(("weight_mean", "is_weight_mean", "w_mean"), "gap_is_weight_mean"),
    **dict.fromkeys(("weight_max", "is_weight_max", "w_max"), "gap_is_weight_max"),
    "is_ess": "gap_is_weight_ess",
    "capped_frac": "capped",
    "cap_frac": "capped",
    "is_capped_frac": "capped",
    **dict.fromkeys(("masked_frac", "rejected_frac", "dropped_frac", "masked_token_frac"), "masked"),
    **dict.fromkeys(("rejected_token_frac", "dropped_token_frac", "is_masked_frac"), "masked"),
    **dict.fromkeys(("masked_row_frac", "rejected_row_frac", "dropped_row_frac", "masked_seq_frac"), "rows"),
    **dict.fromkeys(("w_seq", "seq_ratio_product", "product_ratio", "ratio_seq", "w_product"), "product"),
    **dict.fromkeys(("w_geo", "seq_ratio", "sequence_ratio", "s", "geo_ratio", "ratio_geo"), "sequence"),
    **dict.fromkeys(("kl_k1", "kl_ref_k1", "k1"), "kl_ref_k1"),
    **dict.fromkeys(("kl_k3", "kl_ref_k3", "k3"), "kl_ref_k3"),
    **dict.fromkeys(("missing_logprob_frac", "missing_frac", "nan_frac"), "missing_logprob_frac"),
    "logprob_diff_mean_abs": "gap_abs_mean",
    "logprob_diff_max_abs": "gap_abs_max",
    "logprob_diff_mean": "gap_mean",
    "k1_rollout_vs_train": "gap_k1",
    "k3_rollout_vs_train": "gap_k3",
    "ess_token": "gap_ess",
    "chi2_token": "gap_chi2",
    "ppl_ratio": "gap_ppl_ratio",
}
"""Other names of metrics, by the names of `found`."""


def tensors_of(inputs: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """The mask (B, T) and what stands beside it; one row may be given without its outer list."""
    given = next((inputs[name] for name in ("mask", "loss_mask", "response_mask") if name in inputs), None)
    names = dict(TENSORS)
    if set(PROXIMAL) & inputs.keys() and not set(names["rollout_logprobs"]) & inputs.keys():
        names["rollout_logprobs"] = TENSORS["old_logprobs"][len(PROXIMAL) :]  # AReaL's old is the sampler's
    found = {name: tensor(inputs[key], dtype) for name in names for key in names[name][::-1] if key in inputs}
    if "logprobs" not in found:
        raise UnreadError(f"no log-probs of the policy in {sorted(inputs)}")
    mask = torch.ones_like(found["logprobs"]) if given is None else tensor(given, dtype)
    if mask.dim() == 1:
        mask, found = mask[None], {name: x[None] if x.shape == mask.shape else x for name, x in found.items()}
    found = {name: x[:, None].expand(mask.shape) if x.dim() == 1 else x for name, x in found.items()}
    found.setdefault("old_logprobs", found["logprobs"])
    found.setdefault("rollout_logprobs", found["old_logprobs"])
    found.setdefault("advantages", torch.zeros_like(mask))
    return mask, found


def layout_from(inputs: Case, dtype: torch.dtype, *, garbage: bool) -> tuple[Tensor, PaddedLayout, Tensor]:
    """Log-probs with gradient, the layout and the entropy, with garbage at mask 0 or as they are."""
    mask, tensors = tensors_of(inputs, dtype)
    if garbage:
        filling = torch.tensor(GARBAGE, dtype=dtype).repeat(mask.numel())[: mask.numel()].reshape(mask.shape)
        tensors = {name: torch.where(mask > 0, x, filling) for name, x in tensors.items()}
    logprobs, entropy = tensors.pop("logprobs"), tensors.pop("entropy", torch.zeros_like(mask))
    return logprobs, layout_of(mask, **tensors), entropy


def found(
    algorithm: PolicyGradient, inputs: Case, dtype: torch.dtype, *, garbage: bool, splits: Sequence[Any]
) -> Outputs:
    """Loss, gradient, metrics and the ratios of rows, in every form that they may be asked for in."""
    logprobs, layout, entropy = layout_from(inputs, dtype, garbage=garbage)
    loss, gradient, sums = evaluate(algorithm, logprobs, layout, splits=splits, entropy=entropy)
    mask = layout.loss_mask
    assert torch.all(gradient[~mask] == 0)
    values = metric_values(sums)
    outputs: Outputs = {name.replace("/", "_"): (value,) for name, value in values.items()}
    for place in ("gap", "policy"):
        outputs |= {name.removeprefix(f"{place}/"): (x,) for name, x in values.items() if place in name}
    outputs |= {"loss": (loss,), "grad_logprobs": (gradient,)}
    sides = {side: values.get(f"policy/clip_frac_{side}", 0.0) for side in ("low", "high", "dual")}
    left_out = values.get("gap/is_weight_masked_frac"), values.get("policy/off_policy_masked_frac")
    outputs["clip_frac"] = (sum(sides.values()), sides["low"] + sides["high"])
    capped = values.get("gap/is_weight_capped_frac")
    outputs["capped"] = (sides["high"] + sides["dual"],) if capped is None else (capped,)
    outputs["masked"] = tuple(x for x in left_out if x is not None) or (sides["low"] + sides["high"],)
    outputs["rows"] = tuple(values[x] for x in ("gap/is_weight_masked_row_frac",) if x in values)
    for name in ("clip_frac", "masked"):
        counted = f"num_{name.replace('clip_frac', 'clipped')}"
        outputs[counted] = tuple(x * float(mask.sum()) for x in outputs[name])
    outputs |= ratios_of_rows(logprobs, layout) | kept_and_weights(algorithm, logprobs, layout)
    outputs["finite"] = (bool(loss.isfinite() and gradient.isfinite().all()),)
    return outputs | {alias: outputs[name] for alias, name in METRICS.items() if outputs.get(name)}


def kept_and_weights(algorithm: PolicyGradient, logprobs: Tensor, layout: PaddedLayout) -> Outputs:
    """Importance weights of tokens, and which rows and tokens a mask leaves in; nothing without a mask."""
    old, rollout, mask = layout.old_logprobs, layout.rollout_logprobs, layout.loss_mask
    assert old is not None
    if layout.advantages is not None and algorithm.off_policy_mask_threshold is not None:
        inputs = (select(mask, logprobs) - select(mask, old), select(mask, layout.advantages), mask)
        kept = off_policy_sequence_mask(*inputs, algorithm.off_policy_mask_threshold)
        rows = kept.any(1) | ~mask.any(1)
        return {"kept": (rows, kept.any(1), kept)}
    if algorithm.rollout_is == "none":
        return {}
    known = mask & old.isfinite() & rollout.isfinite()
    high, low = algorithm.rollout_is_threshold, algorithm.rollout_is_threshold_lower
    ends = {"low": 1.0 / high if low is None else low, "high": high}
    log_weight = select(known, old) - select(known, rollout)
    weights = rollout_weights(log_weight, known, ROLLOUT_IS[algorithm.rollout_is], **ends).weight
    kept = weights > 0
    return {"weights": (weights, weights.amax(1)), "kept": (kept.any(1), kept)}


def ratios_of_rows(logprobs: Tensor, layout: PaddedLayout) -> Outputs:
    """The policy's to the anchor, and the learner's to the engine, as a row's product and geometric mean."""
    old, rollout, mask = layout.old_logprobs, layout.rollout_logprobs, layout.loss_mask
    assert old is not None
    known = mask & torch.stack([x.isfinite() for x in (logprobs, old, rollout)]).all(0)
    pairs = [(logprobs, old), (old, rollout), (logprobs, rollout)]
    outputs: Outputs = {}
    for level in ("product", "sequence"):
        logs = [at_level(select(known, x) - select(known, y), known, level) for x, y in pairs]
        last = known.shape[1] - 1 - known.int().flip(1).argmax(1)  # a row without a token: log 0, ratio 1
        rows = [torch.where(known.any(1), x.gather(1, last[:, None])[:, 0], 0.0) for x in logs]
        outputs[level] = tuple(bounded_exp(x) for x in rows)
        outputs[f"log_{level}"] = tuple(rows)
    return outputs


def check_everywhere(
    algorithm: PolicyGradient, inputs: Case, expected: Case, dtype: torch.dtype, tolerance: Tolerance
) -> None:
    """Loss, gradient and metrics as they are, with garbage at mask 0, and split into micro-batches."""
    expected = {**expected, **expected.get("metrics", {})}
    expected.pop("metrics", None)
    parts = [x for key, x in inputs.items() if SPLIT.search(key) and np.ndim(x[0] if x else 0) == 1]
    own = [tuple(torch.tensor(part) for part in split) for split in parts]
    splits = SPLITS[:1] if algorithm.policy_loss in BATCH_RULES else (*SPLITS, *own)
    for garbage in (False, True):
        for split in splits:
            outputs = found(algorithm, inputs, dtype, garbage=garbage, splits=split)
            compare(outputs, expected, tolerance)


def row_of(config: Case, about: str) -> PolicyGradient:
    """The row that a policy-loss configuration names: an interval of the ratio, or a rule of rl/rules.py."""
    name = named_rule(config, about)
    config = {**config, "policy_loss": name}
    if name in INTERVALS:
        return algorithm_of(config, about)
    rule = rule_of(config)
    around = algorithm_of({"policy_loss": "ppo", **rule.around}, about)
    return replace(around, name=rule.name, policy_loss=rule.name, rule_knobs=rule.knobs)


def policy_loss(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """What is expected, and for each mode of aggregation that is named there or in the variants."""
    config, inputs, about = case["config"], case["inputs"], case["id"]
    expected = {key: x for key, x in case["expected"].items() if key not in LOSS_AGG_MODES}
    modes = {key: x for key, x in {**case["variants"], **case["expected"]}.items() if key in LOSS_AGG_MODES}
    if expected or not modes:
        check_everywhere(row_of(config, about), inputs, expected, dtype, tolerance)
    for mode, form in modes.items():
        form = form if isinstance(form, dict) else {"loss": form}
        algorithm = row_of({**config, "loss_agg_mode": mode}, about)
        check_everywhere(algorithm, inputs, form, dtype, tolerance)


def rollout_correction(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """The weights, as the gradient of Σ u log π; every metric with them, whatever the mode."""
    config, expected = case["config"], dict(case["expected"])
    weights = expected.pop("weights", None) or {
        mode: expected.pop(mode) for mode in set(expected) & set(ROLLOUT_IS)
    }
    if not weights:
        raise UnreadError(f"no weights of {', '.join(ROLLOUT_IS)}")
    expected |= expected.pop("metrics", {})
    ones = -np.ones_like(case["inputs"]["mask"])
    inputs = {**case["inputs"], "logprobs": case["inputs"]["old_logprobs"], "advantages": ones}
    for mode, form in weights.items():
        knobs = thresholds(mode, config.get("C"), config.get("C_low"), config.get("geo"))
        algorithm = get_algorithm("reinforce", rollout_is=mode, loss_agg_mode="token-sum", **knobs)
        outputs = found(algorithm, inputs, dtype, garbage=True, splits=SPLITS[1])
        check(outputs["grad_logprobs"][0], form, tolerance)
        gaps = {name.removeprefix("gap_"): x for name, x in outputs.items() if name.startswith("gap_")}
        compare({**outputs, **gaps}, expected, tolerance)


CHECKS = {"policy_loss": policy_loss, "is_weights": rollout_correction}
"""What checks a file, by its `kind`."""
