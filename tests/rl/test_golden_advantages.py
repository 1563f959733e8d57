"""The golden checks of advantages, critic and controller: our files, and each other configuration by hand.

A file of an estimator that we have none of must be read right, too: a small case each, in the files' schema.
"""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from tests.rl import golden_advantages, golden_critic
from tests.rl.golden_config import NotOfferedError, UnreadError

CHECKS = {**golden_advantages.CHECKS, **golden_critic.CHECKS}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TOLERANCE = {"float64": {"rtol": 1e-10, "atol": 1e-12}, "float32": {"rtol": 2e-5, "atol": 2e-6}}
FOLDER = Path(__file__).parent.parent / "golden"
FILES = {case["id"]: case for case in map(json.loads, (path.read_text() for path in FOLDER.glob("*.json")))}

# Two groups; the second trajectory's turns are its first token and its last.
BATCH = {
    "rewards": [1.0, 0.0, 0.5, 0.25],
    "group_ids": [0, 0, 0, 1],
    "mask": [[1, 1, 1], [1, 0, 1], [1, 0, 0]],
}
BATCH["mask"] = [*BATCH["mask"], [0, 1, 0]]
TOKENS = {"mask": [[1, 0, 1]], "token_rewards": [[0.0, 0.0, 1.0]], "values": [[0.5, 9.0, 0.25]]}


def spread(*values):
    return [[value * m for m in row] for value, row in zip(values, BATCH["mask"], strict=True)]


def lite_ppo(*values):
    std = math.sqrt(sum((r - 0.4375) ** 2 for r in BATCH["rewards"]) / 3)  # of 1, 0, .5, .25
    return [value / (std + 1e-6) for value in values]


def whitened(values, counts):
    total = sum(counts)
    mean = sum(n * x for n, x in zip(counts, values, strict=True)) / total
    variance = sum(n * (x - mean) ** 2 for n, x in zip(counts, values, strict=True)) / (total - 1)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in values]


OPMD_MEAN = math.log((math.e + 1 + math.exp(0.5)) / 3)
PART = 1 / (1 + 1e-6)  # (1 - 0) / (std of 1, -1, 0 + eps)
TURN = 1 / (1 + 1e-4)
SPO_STD = math.sqrt((0.5**2 * 2) / 3)  # of .5, -.5, 0, 0: mean 0
BY_HAND = {
    "dr_grpo": ({"adv_estimator": "grpo", "norm_adv_by_std": False}, {}, {"advantages": [0.5, -0.5, 0, 0]}),
    "lite_ppo": ({"eps": 1e-6}, {}, {"advantages": lite_ppo(0.5, -0.5, 0, 0)}),
    # 3 and 2 and 1 tokens: (3 · 1 + 1 · .5) / 6
    "opo": ({}, {}, {"advantages": [1 - 3.5 / 6, -3.5 / 6, 0.5 - 3.5 / 6, 0]}),
    "gpg": ({}, {}, {"advantages": [2 / 3, -2 / 3, 0, 0]}),  # α = 4 / 3
    "remax": (
        {},
        {"greedy_rewards": [0.5, 0.25]},  # one a group
        {"token_advantages": spread(0.5, -0.5, 0, 0), "returns": spread(1.0, 0, 0.5, 0.25)},
    ),
    "grpo_passk": ({"norm_adv_by_std": True}, {}, {"advantages": [0.5 / 0.500001, 0, 0, 0]}),
    "maxrl": ({}, {}, {"advantages": [1, -1, 0, 0]}),
    "opmd_logavgexp": ({"tau": 1.0}, {}, {"advantages": [1 - OPMD_MEAN, -OPMD_MEAN, 0.5 - OPMD_MEAN, 0]}),
    "gdpo": (
        {"reward_weights": [1.0, 2.0]},
        {"rewards_a": [1.0, -1.0, 0, 3], "rewards_b": [0.0, 1.0, -1.0, 5], "rewards": [1.0, 0, -1, 8]},
        # Parts (1, -1, 0) and (0, 1, -1) over std 1; whitened over 3, 2, 1 and 1 tokens.
        {"advantages": whitened([PART, -PART + 2 * PART, -2 * PART, 0], [3, 2, 1, 1])},
    ),
    "spo": (
        {},
        {"alpha": [4.0, 4.0, 4.0, 1.0], "beta": [4.0, 4.0, 4.0, 3.0]},
        {"advantages": [0.5 / (SPO_STD + 1e-8), -0.5 / (SPO_STD + 1e-8), 0, 0]},
    ),
    "reinforce_pp_baseline": (
        {},
        {},
        {
            "advantages": [
                [x * m for m in row]
                for x, row in zip(whitened([0.5, -0.5, 0, 0], [3, 2, 1, 1]), BATCH["mask"], strict=True)
            ]
        },
    ),
    "mt_grpo": (
        {"lambda": 0.5},
        {"outcome_rewards": [1.0, -1.0, 0.0, 3.0], "turn_rewards": [0.0, 1.0, -1.0, 5.0]},
        # Row 1 samples, uses a tool and samples again: its last token is of the second turn.
        {"advantages": [[TURN] * 3, [-TURN / 2, 0, -TURN], [-TURN / 2, 0, 0], [0, 0, 0]]},
    ),
    "gigpo": (
        {"gamma": 0.5, "omega": 2.0, "mode": "mean_norm"},
        {
            "mask": None,
            "rewards": [1.0, 0.0, 0.5, 9.0],
            "step_rewards": [[0.0, 1.0], [0.0, 0.0, 0.0], [0.5], [3.0]],
            "anchors": [["x", "y"], ["x", "y", "x"], ["z"], ["x"]],
        },
        # R: .5, 1 | 0, 0, 0 | .5 | 3. In group 0, x has .5, 0, 0 (mean 1/6), y has 1, 0.
        {
            "advantages": [
                [0.5 + 2 * (0.5 - 1 / 6), 0.5 + 1.0],
                [-0.5 - 1 / 3, -0.5 - 1.0, -0.5 - 1 / 3],
                [0.0],
                [0.0],
            ],
            "step_returns": [[0.5, 1.0], [0, 0, 0], [0.5], [3.0]],
        },
    ),
    # α n = 2: λ = .5. δ: .25 - .5 and 1 - .25; A: -.25 + .5 · .75. The critic's returns: 1 and 1.
    "vapo_length_adaptive_gae": (
        {"alpha": 1.0, "gamma": 1.0},
        TOKENS,
        {"advantages": [[0.125, 0, 0.75]], "returns": [[1.0, 0, 1.0]]},
    ),
}


def case_of(name, config, inputs, expected):
    inputs = dict(inputs) if "values" in inputs else {**BATCH, **inputs}
    return {
        "id": f"adv_{name}",
        "kind": "advantage",
        "config": config,
        "inputs": inputs,
        "expected": expected,
        "variants": {},
    }


CASES = {name: case_of(name, *parts) for name, parts in BY_HAND.items()}
CASES["kl_controller_adaptive"] = {
    "kind": "controller",
    "config": {"init_kl_coef": 0.2, "target_kl": 6.0, "horizon": 1000},
    "inputs": {"kl": [6.6, 60.0, 0.0], "n_steps": 100},
    # errors .1, .2, -.2 of a tenth of the horizon
    "expected": {"kl_coef": [0.2 * 1.01, 0.2 * 1.01 * 1.02, 0.2 * 1.01 * 1.02 * 0.98]},
}
CASES |= {name: case for name, case in FILES.items() if case["kind"] in CHECKS}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_golden_case(name, precision):
    case = CASES[name]
    CHECKS[case["kind"]](case, DTYPES[precision], TOLERANCE[precision])


def moved(expected):
    """The same with 1e-3 more in the first number of each list."""
    if isinstance(expected, list):
        return [moved(expected[0]), *expected[1:]]
    return expected + 1e-3


@pytest.mark.parametrize("name", CASES)
def test_each_case_can_fail(name):
    for key in set(CASES[name]["expected"]) - {"metrics"}:
        case = copy.deepcopy(CASES[name])
        case["expected"][key] = moved(case["expected"][key])
        with pytest.raises(AssertionError):
            CHECKS[case["kind"]](case, torch.float64, TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "adv_mystery", "config": {"adv_estimator": "mystery"}}, "mystery"),
        ({"config": {"std_unbiased": False}}, "std_unbiased False"),
        ({"config": {"norm_adv_by_std": "row"}}, "norm_adv_by_std 'row'"),
    ],
)
def test_what_is_not_offered_says_why(changes, reason):
    case = {**FILES["adv_grpo"], **changes}
    with pytest.raises(NotOfferedError, match=reason):
        CHECKS["advantage"](case, torch.float64, TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": {"mask": [[1]], "group_ids": [0]}}, "no rewards"),
        ({"expected": {"mystery": [0.0] * 8}}, "expects mystery, which nothing computes"),
        ({"expected": {"mystery": [0.123] * 8}}, "expects mystery, which nothing computes"),
    ],
)
def test_what_is_not_understood_fails(changes, reason):
    case = {**FILES["adv_grpo"], **changes}
    with pytest.raises((UnreadError, AssertionError), match=reason):
        CHECKS["advantage"](case, torch.float64, TOLERANCE["float64"])


def test_an_output_of_an_unknown_name_is_known_by_its_value():
    case = {**FILES["adv_grpo"], "variants": {}}
    case["expected"] = {"mystery": case["expected"]["advantages"]}
    with pytest.warns(UserWarning, match="it has the value of advantages"):
        CHECKS["advantage"](case, torch.float64, TOLERANCE["float64"])
