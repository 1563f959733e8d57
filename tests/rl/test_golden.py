"""The golden files: every `*.json` of GOLDEN_DIR (default tests/golden), computed by the public table.

A file whose configuration is not offered is skipped by name, `not offered: NAME`, and listed in the summary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.advantages import group_fractions
from rl.algorithms import PolicyGradient, get_algorithm
from rl.batch import Accounting, PaddedLayout, TrainBatch, TrainSample
from rl.filters import resample_on_correct, roc_penalty
from rl.losses import LOSS_AGG_MODES, ROLLOUT_IS
from rl.numerics import group_statistics, k3, metric_values
from tests.rl import golden_advantages, golden_preferences
from tests.rl.golden_config import INTERVALS, Case, NotOfferedError, algorithm_of, kl_knobs, thresholds
from tests.rl.golden_given import Given
from tests.rl.golden_numeric import numeric
from tests.rl.golden_rules import rule_of
from tests.rl.making import evaluate, layout_of

FILES = sorted(Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent.parent / "golden")).glob("*.json"))
DTYPES = {"float64": torch.float64, "float32": torch.float32}
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e9)
SPLITS = (slice(0, 3), slice(3, 4), slice(4, None))


def tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(np.array(values, np.float64), dtype=dtype)  # "nan" and "inf" are strings in the files


def check(actual: Any, expected: Any, tolerance: dict[str, float]) -> None:
    actual = (
        actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.array(actual, np.float64)
    )
    np.testing.assert_allclose(actual, np.array(expected, np.float64), **tolerance)


def layout_from(inputs: Case, dtype: torch.dtype, *, garbage: bool) -> tuple[torch.Tensor, PaddedLayout]:
    mask = tensor(inputs["mask"], dtype)
    names = ("logprobs", "old_logprobs", "rollout_logprobs", "ref_logprobs", "advantages")
    tensors = {name: tensor(inputs[name], dtype) for name in names if name in inputs}
    tensors.setdefault("advantages", torch.zeros_like(mask))
    tensors.setdefault("rollout_logprobs", tensors.get("old_logprobs", torch.zeros_like(mask)))
    if garbage:
        filling = torch.tensor(GARBAGE, dtype=dtype).repeat(mask.numel())[: mask.numel()].reshape(mask.shape)
        tensors = {name: torch.where(mask > 0, x, filling) for name, x in tensors.items()}
    logprobs = tensors.pop("logprobs", torch.zeros_like(mask))
    return logprobs, layout_of(mask, **tensors)


def check_everywhere(
    algorithm: PolicyGradient, inputs: Case, expected: Case, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    """Loss, gradient and metrics as they are, with garbage at mask 0, and split into micro-batches."""
    for garbage in (False, True):
        for splits in ((slice(None),), SPLITS):
            logprobs, layout = layout_from(inputs, dtype, garbage=garbage)
            loss, gradient, sums = evaluate(algorithm, logprobs, layout, splits=splits)
            check(loss, expected["loss"], tolerance)
            if "grad_logprobs" in expected:
                check(gradient, expected["grad_logprobs"], tolerance)
            assert torch.all(gradient[~layout.loss_mask] == 0)
            check_metrics(metric_values(sums), expected.get("metrics", {}), layout, tolerance)


def check_metrics(
    values: dict[str, float], expected: Case, layout: PaddedLayout, tolerance: dict[str, float]
) -> None:
    for name, value in expected.items():
        if name == "seq_ratio":
            trained = np.array(value)[layout.loss_mask.any(1).numpy()]
            check(
                [values["policy/ratio_min"], values["policy/ratio_max"]],
                [trained.min(), trained.max()],
                tolerance,
            )
        elif name == "seq_clip_frac":
            parts = ("low", "high", "dual")
            check(sum(values[f"policy/clip_frac_{part}"] for part in parts), value, tolerance)
        else:
            key = next(
                (f"{place}/{name}" for place in ("policy", "gap") if f"{place}/{name}" in values), name
            )
            check(values[key], value, tolerance)


def row_of(config: Case) -> PolicyGradient:
    """The row that a policy-loss configuration names: an interval of the ratio, or a rule of rl/rules.py."""
    if config["policy_loss"] in INTERVALS:
        return algorithm_of(config)
    rule = rule_of(config)
    around = algorithm_of({"policy_loss": "ppo", **rule.around})
    return replace(around, name=rule.name, policy_loss=rule.name, rule_knobs=rule.knobs)


def policy_loss(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    algorithm = row_of(case["config"])
    check_everywhere(algorithm, case["inputs"], case["expected"], dtype, tolerance)
    for mode in set(case["variants"]) & set(LOSS_AGG_MODES):
        algorithm = row_of({**case["config"], "loss_agg_mode": mode})
        check_everywhere(algorithm, case["inputs"], case["variants"][mode], dtype, tolerance)


def batch_from(rewards: np.ndarray, inputs: Case) -> TrainBatch:
    """One sample a reward, with one prompt token before the file's positions."""
    mask = np.pad(np.array(inputs["mask"], bool), ((0, 0), (1, 0)))
    num_tokens = mask.sum(1)
    samples = []
    for index, row in enumerate(mask):
        sample = TrainSample(
            token_ids=np.zeros(row.shape, np.int64),
            loss_mask=row,
            rollout_logprobs=np.zeros(row.shape, np.float32),
            versions=np.zeros(row.shape, np.int64),
            turn_ids=np.where(row, 0, -1),
            trajectory_id=str(index),
            group_id=inputs["group_ids"][index],
            env="calc",
            weight=1.0,
        )
        samples.append(sample)
    total = int(num_tokens.sum())
    return TrainBatch(
        samples=tuple(samples),
        trajectory_ids=tuple(sample.trajectory_id for sample in samples),
        group_ids=np.array(inputs["group_ids"]),
        rewards=rewards,
        lengths=num_tokens,
        truncated=np.zeros(len(samples), bool),
        accounting=Accounting(
            num_trajectories=len(samples),
            num_sampled=total,
            num_trained=total,
            num_masked=0,
            dropped={},
            dropped_trajectories={},
        ),
    )


def kl(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    on_policy = {**case["inputs"], "old_logprobs": case["inputs"]["logprobs"]}
    forms = [(case["config"]["kl_loss_type"], case["inputs"], case["expected"])]
    forms += [(name, on_policy, case["variants"][name]) for name in ("k1", "k2", "k3", "k1+", "k3+")]
    for name, inputs, expected in forms:
        algorithm = get_algorithm("reinforce", kl_loss_coef=1.0, loss_agg_mode="token-mean", **kl_knobs(name))
        without_metrics = {key: expected[key] for key in ("loss", "grad_logprobs")}
        check_everywhere(algorithm, inputs, without_metrics, dtype, tolerance)
        logprobs, layout = layout_from(inputs, dtype, garbage=False)
        values = metric_values(evaluate(algorithm, logprobs, layout)[2])
        for estimator in ("k1", "k3"):
            metrics = case["expected"]["metrics"]
            check(values[f"policy/kl_ref_{estimator}"], metrics[f"kl_{estimator}"], tolerance)


def rollout_correction(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    config, inputs, metrics = case["config"], case["inputs"], case["expected"]["metrics"]
    names = {
        "logprob_diff_mean_abs": "gap/abs_mean",
        "logprob_diff_max_abs": "gap/abs_max",
        "k1_rollout_vs_train": "gap/k1",
        "k3_rollout_vs_train": "gap/k3",
        "ratio_mean": "gap/ratio_mean",
        "ratio_max": "gap/ratio_max",
        "ratio_min": "gap/ratio_min",
        "ess_token": "gap/ess",
        "chi2_token": "gap/chi2",
    }
    assert set(case["expected"]["weights"]) == set(ROLLOUT_IS)
    for mode, weights in case["expected"]["weights"].items():
        knobs = thresholds(mode, config["C"], config["C_low"], config["geo"])
        algorithm = get_algorithm("reinforce", rollout_is=mode, loss_agg_mode="token-sum", **knobs)
        logprobs, layout = layout_from(
            {**inputs, "advantages": -np.ones_like(inputs["mask"])}, dtype, garbage=True
        )
        _, gradient, sums = evaluate(algorithm, logprobs, layout)
        check(gradient, weights, tolerance)  # d/dℓ of Σ u ℓ
        values = metric_values(sums)
        for name, value in metrics.items():
            check(values[names[name]], value, tolerance)


def dynamic_sampling(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    del dtype
    rewards, group_ids = (np.array(case["inputs"][name]) for name in ("rewards", "group_ids"))
    informative = group_statistics(rewards, group_ids).informative
    assert sorted(set(group_ids[informative])) == case["expected"]["kept_groups"]
    assert sorted(set(group_ids[~informative])) == case["expected"]["dropped_groups"]
    names = ("zero_std_group_fraction", "singleton_group_fraction")
    check(group_fractions(rewards, group_ids), [case["expected"][name] for name in names], tolerance)


def roc(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    del tolerance
    given = Given(case["inputs"], case["config"], dtype)
    rewards = given.array("rewards", "scores", "reward")
    groups = np.array(given.get("group_ids", "groups", "uid", default=[0] * len(rewards)))
    penalty = given.get("penalties", "penalty", "penalty_weights", "weights", default=None)
    if penalty is None:
        calls = given.array("num_calls", "tool_calls", "calls", "num_tool_calls", "total_calls", "n_calls")
        names = ("failed_calls", "num_failed_calls", "tool_errors", "errors", "error_calls", "num_errors")
        failed = given.array(*names, "n_errors", "n_failed", "failed")
        formats = ("format_penalty", "format_penalties", "p_format", "format_errors", "format_error")
        extra = np.broadcast_to(given.array(*formats, default=0.0), calls.shape)
        penalty = [
            roc_penalty(int(f), int(c), float(e)) for f, c, e in zip(failed, calls, extra, strict=True)
        ]
    knobs = {
        "num_kept": int(given.get("down_sample_to_n", "keep", "num_kept", "G", "n", "group_size", "k")),
        "min_zero": int(given.get("min_zero", "min_zero_reward_trace_num", default=2)),
        "min_nonzero": int(given.get("min_nonzero", "min_non_zero_reward_trace_num", default=2)),
    }
    kept = np.zeros(len(rewards), bool)
    for group in np.unique(groups):
        members = groups == group
        kept[members] = resample_on_correct(rewards[members], np.array(penalty)[members], **knobs)
    checked = 0
    for name, value in case["expected"].items():
        if name in ("penalty", "penalties", "penalty_weights"):
            np.testing.assert_allclose(penalty, value)
        elif "drop" in name or "reject" in name:
            assert sorted(value) == np.flatnonzero(~kept).tolist()
        elif len(value) == len(rewards) and set(map(float, value)) <= {0.0, 1.0}:
            assert np.array(value, bool).tolist() == kept.tolist()
            checked += 1
        else:
            assert sorted(value) == np.flatnonzero(kept).tolist()
            checked += 1
    assert checked


def small_k3(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    relative = (
        case["expected"]["max_rel_error_allowed_float32"] if dtype is torch.float32 else tolerance["rtol"]
    )
    check(k3(tensor(case["inputs"]["d"], dtype)), case["expected"]["k3"], {"rtol": relative, "atol": 0.0})


def zero_std(case: Case, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    del dtype, tolerance
    also = case["variants"]["also"]
    for inputs, expected in ((case["inputs"], case["expected"]), (also, also)):
        rewards = np.array(inputs["rewards_float32"], np.float32).astype(np.float64)
        made = {"group_ids": [0] * len(rewards), "mask": np.ones((len(rewards), 3))}
        for name in ("grpo", "dr_grpo"):
            advantages = get_algorithm(name).assign_advantages(batch_from(rewards, made)).advantages
            assert advantages is not None
            assert np.stack(advantages)[:, 1].tolist() == expected["advantages"]  # 0, and exactly


CHECKS: dict[str, Callable[[Case, torch.dtype, dict[str, float]], None]] = {
    "policy_loss": policy_loss,
    "kl_loss_type": kl,
    "weights": rollout_correction,
    "kept_groups": dynamic_sampling,
    "filter": roc,
    "k3": small_k3,
    "is_zero_std": zero_std,
    **golden_preferences.CHECKS,
    **golden_advantages.CHECKS,
    "numeric": numeric,
}
"""What checks a file, by the first of these names that is its kind, or that its config or expected has."""


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path, precision):
    case = json.loads(path.read_text())
    if (
        case["kind"] == "numeric"
        and {"mask", "logprobs", "old_logprobs", "advantages"} <= case["inputs"].keys()
    ):
        case["config"] = {"policy_loss": "ppo", "loss_agg_mode": "token-mean", **case["config"]}
    names = {case["kind"]: None, **case["config"], **case["expected"]}
    checker = next((CHECKS[name] for name in CHECKS if name in names), None)
    try:
        if checker is None:
            raise NotOfferedError(case["kind"])
        checker(case, DTYPES[precision], case["tolerance"][precision])
        print(f"{path.stem}: agrees in {precision}")
    except NotOfferedError:
        # All of ours are offered: a row that is broken must not pass for one that is not.
        assert "GOLDEN_DIR" in os.environ
        print(f"not offered: {path.stem}")
        pytest.skip(f"not offered: {path.stem}")


def test_there_are_golden_files():
    assert FILES
