"""How golden files are read: settings under other names, and small files with their numbers by hand."""

import copy

import pytest
import torch

from tests.rl.golden_config import NotOfferedError, UnreadError
from tests.rl.golden_policy import row_of
from tests.rl.test_golden import CHECKS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # the numbers below have six digits


@pytest.mark.parametrize(
    ("config", "about", "knobs"),
    [
        ({"policy_loss": "dual_clip", "clip_ratio": 0.1, "c": 3.0}, "", {"clip_ratio_c": 3.0}),
        ({"policy_loss": "ppo_two_sided", "epsilon": 0.2, "delta": 4.0}, "", {"clip_ratio_c": 4.0}),
        # Beside a mask of off-policy rows delta is that mask's threshold.
        (
            {"delta": 0.1},
            "loss_off_policy_seq_mask",
            {"off_policy_mask_threshold": 0.1, "clip_ratio_c": None},
        ),
        ({"old_logprobs": "rollout"}, "loss_ppo", {"bypass_mode": True}),
        ({}, "loss_ppo_bypass_rollout_ratio", {"bypass_mode": True, "policy_loss": "ppo"}),
        ({"C": 2.0}, "loss_decoupled_ppo", {"rollout_is": "token_icepop", "rollout_is_threshold_lower": 0.0}),
        ({"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}, "", {"rollout_is": "token_icepop"}),
        ({"kl_coef": 0.1, "kl_estimator": "low_var_kl"}, "", {"kl_loss_type": "k3", "kl_gradient": "naive"}),
        ({"policy_loss": "gspo", "ratio_level": "seq"}, "", {"importance_sampling_level": "sequence"}),
        ({"policy_loss": "cispo", "C": 4.0}, "", {"cispo_ratio_high": 4.0, "rollout_is": "none"}),
        ({"policy_loss": "dppo_binary_kl"}, "", {"policy_loss": "dppo_kl"}),
    ],
)
def test_a_setting_is_known_by_its_other_names(config, about, knobs):
    row = row_of(config, about)
    assert {name: getattr(row, name) for name in knobs} == knobs


def test_what_the_library_lacks_is_not_offered():
    for config in (
        {"policy_loss": "m2po"},
        {"rollout_is": "mystery"},
        {"policy_loss": "cispo", "lower": 0.8},
    ):
        with pytest.raises(NotOfferedError):
            row_of(config, "")


def test_a_setting_that_nothing_reads_is_said():
    with pytest.warns(UserWarning, match="setting mystery = 3 is not read"):
        row_of({"policy_loss": "ppo", "mystery": 3}, "")


CASES = {
    # log(1/2) - log(1/4) = .693147, log(1/2) - log(3/4) = -.405465: KL(π ‖ ref) is their mean, .143841; its
    # gradient ½ (.693147 - .143841). KL(ref ‖ π) = ¼ ln ½ + ¾ ln 1.5, gradient π - ref. k2: ½ of the squares.
    "kl_exact": {
        "kind": "kl",
        "inputs": {"pi": [0.5, 0.5], "ref": [0.25, 0.75]},
        "expected": {
            "kl_reverse": 0.143841,
            "grad_kl_reverse": [0.274653, -0.274653],
            "kl_forward": 0.130812,
            "grad_kl_forward": [0.25, -0.25],
            "k1": {"value": 0.143841, "grad": [0.0, 0.0]},
            "k2": {"value": 0.161214, "grad": [0.274653, -0.274653]},
            "k3_times_ratio": {"value": 0.143841, "grad": [0.274653, -0.274653]},
        },
    },
    # 1000 · 0.001 = 1: e and e^0.001; the cap holds the product.
    "num_long_sequence_ratio": {
        "kind": "numeric",
        "config": {"C": 2.0},
        "inputs": {"T": 1000, "delta_per_token": 0.001},
        "expected": {"log_product": 1.0, "product": 2.718282, "geometric_ratio": 1.001001, "seq_tis": 2.0},
    },
    # e^0.1 at the one token that counts, whatever stands at the other.
    "num_where_gradient_trap": {
        "kind": "numeric",
        "inputs": {"d": [0.1, 1000.0], "mask": [1, 0]},
        "expected": {"value": 1.105171, "grad": [1.105171, 0.0]},
    },
    # Two batches that differ in padding alone: mean of -1 · e^0.1.
    "num_padding": {
        "kind": "numeric",
        "config": {"policy_loss": "importance_sampling"},
        "inputs": {
            name: {
                "mask": [mask],
                "logprobs": [[-1.0] * n],
                "old_logprobs": [[-1.1] * n],
                "advantages": [[1.0] * n],
            }
            for name, mask, n in (("short", [1, 1], 2), ("long", [0, 1, 1, 0], 4))
        },
        "expected": {"loss": -1.105171},
    },
    # π/old 2 and ½ in one row: (2 + ½)² / (2 · (4 + ¼))
    "metric_ess": {
        "kind": "metric",
        "inputs": {"mask": [[1, 1]], "logprobs": [[-1.0, -2.0]], "old_logprobs": [[-1.693147, -1.306853]]},
        "expected": {"ess": 0.735294},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_small_file_agrees_and_can_fail(name):
    case = {"config": {}, "variants": {}, "id": name, **CASES[name]}
    CHECKS[case["kind"]](case, torch.float64, TOLERANCE)
    for key, value in case["expected"].items():
        wrong = copy.deepcopy(case)
        wrong["expected"][key] = moved(value)
        with pytest.raises(AssertionError):
            CHECKS[case["kind"]](wrong, torch.float64, TOLERANCE)


def moved(value):
    if isinstance(value, dict):
        return {key: moved(x) for key, x in value.items()}
    return [moved(value[0]), *value[1:]] if isinstance(value, list) else value + 1e-3


def test_a_file_in_unknown_words_fails():
    case = {
        "id": "num_mystery",
        "config": {},
        "variants": {},
        "inputs": {"mystery": [1.0]},
        "expected": {"k3": 1.0},
    }
    with pytest.raises(UnreadError, match="mystery"):
        CHECKS["numeric"](case, torch.float64, TOLERANCE)
