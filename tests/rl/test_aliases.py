"""Names of other libraries: converted and said, or refused with the choice."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from recipes.cli import parse
from recipes.preference_config import PreferenceConfig
from rl.algorithms import ALGORITHMS, get_algorithm, knobs_of
from rl.aliases import ALIASES, VALUES
from rl.config import Config
from rl.conversions import converted, converted_options
from rl.defaults import resolve
from rl.machine import Machine
from rl.policy_gradient import PolicyGradient
from rl.run_dir import RunDir

NOTHING: dict[str, object] = {}
BAND = ("clip_ratio_low", "clip_ratio_high")
MASKED = {"rollout_is_threshold_lower": 0.0}
CONVERSIONS = [
    # The rows of algorithms.md 4.3 in their order: TRL, OpenRLHF, the others.
    # adv_estimator
    ({"algo.advantage.estimator": "group_norm"}, {"adv_estimator": "grpo"}),
    ({"advantage_estimator": "reinforce"}, {"adv_estimator": "reinforce_plus_plus"}),
    ({"advantage_estimator": "reinforce_baseline"}, {"adv_estimator": "reinforce_plus_plus_baseline"}),
    ({"lambd": "0.95", "value_clip": 0.2}, {"lam": 0.95, "cliprange_value": 0.2}),
    # norm_adv_by_std
    ({"scale_rewards": "group"}, {"adv_estimator": "grpo"}),
    ({"scale_rewards": "batch"}, {"adv_estimator": "lite_ppo"}),
    ({"scale_rewards": False}, {"adv_estimator": "dr_grpo"}),
    ({"norm_adv_by_std": "none"}, {"adv_estimator": "dr_grpo"}),
    ({"norm_adv_by_std_in_grpo": True}, {"adv_estimator": "grpo"}),
    # clip_ratio_low, clip_ratio_high
    ({"epsilon": 0.1}, dict.fromkeys(BAND, 0.1)),
    ({"epsilon": 0.1, "epsilon_high": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"epsilon": 0.1, "clip_ratio_high": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"actor.eps_clip_low_high": "0.2 0.27"}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.27}),
    ({"eps_clip_low_high": (0.2, 0.27)}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.27}),
    ({"eps_clip": 0.1, "eps_clip_higher": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"eps_clip": 0.1, "eps_clip_high": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"ratio_clip_min": 0.1, "ratio_clip_max": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"clip_ratio": 0.1}, dict.fromkeys(BAND, 0.1)),
    # clip_ratio_c
    ({"delta": 4.0}, {"clip_ratio_c": 4.0}),
    ({"actor.dual_clip": "3"}, {"clip_ratio_c": 3.0}),
    *[({name: 3.0}, {"clip_ratio_c": 3.0}) for name in ("c_clip", "eps_clip_c", "ratio_clip_c")],
    # importance_sampling_level
    (
        {"actor.policy_loss_type": "gspo"},
        {
            "policy_loss": "ppo",
            "importance_sampling_level": "sequence",
            "loss_agg_mode": "seq-mean-token-mean",
        },
    ),
    # loss_agg_mode, loss_scale_factor
    ({"loss_type": "dapo"}, {"loss_agg_mode": "token-mean"}),
    ({"loss_type": "grpo"}, {"loss_agg_mode": "seq-mean-token-mean"}),
    ({"loss_type": "cispo"}, {"policy_loss": "cispo", "loss_agg_mode": "token-mean"}),
    (
        {"loss_type": "dr_grpo", "max_completion_length": "512"},
        {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 512.0},
    ),
    ({"loss_agg": "token-mean"}, {"loss_agg_mode": "token-mean"}),
    ({"loss_reduction": "sequence_mean"}, {"loss_agg_mode": "seq-mean-token-mean"}),
    # use_kl_in_reward, use_kl_loss, kl_loss_coef, kl_loss_type
    ({"beta": 0.04}, {"kl_loss_coef": 0.04}),
    ({"algo.kl.init_coef": "0.01"}, {"kl_coef": 0.01}),
    ({"algo.kl.init_coef": "0.01", "algo.kl.use_loss": ""}, {"kl_loss_coef": 0.01}),
    ({"algo.kl.estimator": "k2"}, {"kl_loss_type": "k2"}),
    ({"kl_ctl": 0.1}, {"kl_coef": 0.1}),
    ({"use_kl_loss": True, "kl_loss_coef": 0.1}, {"kl_loss_coef": 0.1}),
    ({"use_kl_loss": False}, {"kl_loss_coef": 0.0}),
    ({"use_kl_in_reward": "false"}, {"kl_coef": 0.0}),
    ({"kl_loss_type": "low_var_kl"}, {"kl_loss_type": "k3"}),
    # kl_gradient
    ({"use_bias_correction_kl": True}, {"kl_gradient": "unbiased"}),
    ({"unbiased_gradient": "false"}, {"kl_gradient": "naive"}),
    ({"use_unbiased_kl": ""}, {"kl_gradient": "unbiased"}),  # a flag
    ({"kl_loss_type": "k3+"}, {"kl_loss_type": "k3", "kl_gradient": "unbiased"}),
    # rollout_is, rollout_is_threshold
    ({"vllm_importance_sampling_mode": "token_truncate"}, {"rollout_is": "token_tis"}),
    ({"vllm_importance_sampling_mode": "sequence_mask"}, {"rollout_is": "seq_mis", **MASKED}),
    ({"vllm_importance_sampling_clip_max": 3.0}, {"rollout_is_threshold": 3.0}),
    (
        {"vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_min": 0.5},
        {"rollout_is": "token_icepop", "rollout_is_threshold_lower": 0.5},
    ),
    (
        {"is_correction_level": "token", "is_correction_mode": "mask"},
        {"rollout_is": "token_icepop", "rollout_is_threshold": 5.0, "rollout_is_threshold_lower": 0.5},
    ),
    (
        {"is_correction_level": "seq", "is_correction_mode": "mask", "is_correction_threshold": "0.99 1.01"},
        {"rollout_is": "geo_mask_token_is", "rollout_is_threshold": 1.01, "rollout_is_threshold_lower": 0.99},
    ),
    (
        {"is_correction_level": "token", "is_correction_mode": "clip", "is_correction_threshold": "2"},
        {"rollout_is": "token_tis", "rollout_is_threshold": 2.0},
    ),
    ({"tis_clip": 2.0}, {"rollout_is": "token_tis", "rollout_is_threshold": 2.0}),
    ({"use_tis": "", "tis_clip_low": 0}, {"rollout_is": "token_tis"}),
    ({"rollout_is": "sequence"}, {"rollout_is": "seq_tis"}),
    (
        {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
        {"rollout_is": "token_icepop", "rollout_is_threshold": 5.0, "rollout_is_threshold_lower": 0.5},
    ),
    # entropy_coeff
    ({"entropy_coef": 0.01}, {"entropy_coeff": 0.01}),
    # Rules, truncation, bypass
    ({"policy_loss": "geo_mean"}, {"policy_loss": "gmpo"}),
    (
        {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
        {"rule_knobs": {"tau_pos": 2.0, "tau_neg": 3.0}},
    ),
    ({"mask_truncated_completions": True}, {"truncated": "mask"}),
    ({"use_rollout_logprobs": ""}, {"bypass_mode": True}),
]


@pytest.mark.parametrize(("given", "expected"), CONVERSIONS)
def test_a_foreign_name_is_converted_and_said(given, expected):
    knobs, conversions = converted(given)
    assert knobs == expected
    said = [str(conversion) for conversion in conversions]
    assert all(any(line.startswith(name) for line in said) for name in given if name not in expected)
    assert set(expected) <= set(PolicyGradient.__dataclass_fields__)  # they are knobs of ours


REFUSALS = [
    # algorithms.md 4.3: names to refuse with an explanation
    ("cispo", {"epsilon_high": 5.0}, "Give cispo_ratio_high, the absolute cap: 5 as TRL means it, 6 as the"),
    ("grpo", {"loss_type": "cispo", "epsilon_high": 5.0}, "Give cispo_ratio_high, the absolute cap"),
    ("cispo", {"eps_clip_high": 0.28}, "Give cispo_ratio_high, the absolute cap: 0.28 as TRL.*1.28 as the"),
    *[
        ("grpo", {name: value}, "integer estimators mean different things .* give k1, k2 or k3")
        for name in ("kl_loss_type", "kl_estimator")
        for value in (0, "1", 2, "3")
    ],
    (
        "grpo",
        {"policy_loss": "ipo"},
        "names two things: a preference loss.*prime-rl's trust region, here pol",
    ),
    (
        "grpo",
        {"policy_loss": "vanilla"},
        "verl's vanilla is PPO's clip, policy_loss ppo; ROLL's is REINFORCE",
    ),
    ("grpo", {"loss_type": "bnpo"}, "depends on how a batch is split; give loss_agg_mode token-mean"),
    ("grpo", {"loss_type": "sigmoid"}, "a preference loss: run recipes.calc_dpo with --algorithm dpo"),
    ("grpo", {"max_completion_length": 256}, "give max_turn_tokens and max_total_tokens .*loss_scale_factor"),
    # What would mean something else here than there
    ("grpo", {"delta": 1.1}, r"1.1 is not above 1 \+ epsilon_high = 1.2.*clip_ratio_high for that side"),
    ("grpo", {"delta": 1.5, "epsilon": 0.6}, r"1.5 is not above 1 \+ epsilon_high = 1.6"),
    (
        "rloo",
        {"scale_rewards": "group"},
        "adv_estimator 'rloo' is not R - mean of the group over a std; give",
    ),
    ("grpo", {"adv_norm": "batch"}, "AReaL normalizes over tokens.*give adv_estimator"),
    (
        "grpo",
        {"tis_clip_low": 0.5},
        "raises smaller weights to it.*token_icepop with rollout_is_threshold_lo",
    ),
    (
        "grpo",
        {"is_correction_level": "token", "is_correction_mode": "clip"},
        "cut from above alone here; give",
    ),
    ("grpo", {"is_correction_level": "token"}, "expected off, or token, seq or geo with mask"),
    ("grpo", {"is_correction_mode": "mask"}, "is part of is_correction_level: give that, too"),
    # Wrong values, and a knob that is set twice
    ("dapo", {"use_kl_loss": True}, "give kl_loss_coef, how much it weighs"),
    ("grpo", {"scale_rewards": "maybe"}, "expected one of group, true, batch, none, false"),
    ("grpo", {"use_unbiased_kl": "perhaps"}, "'perhaps': expected true or false"),
    ("grpo", {"epsilon": "wide"}, "epsilon .TRL. = 'wide': expected a number"),
    ("grpo", {"eps_clip_low_high": "0.2"}, "expected two numbers"),
    (
        "grpo",
        {"kl_loss_coef": 0.1, "beta": 0.04},
        "beta sets kl_loss_coef to 0.04, and kl_loss_coef to 0.1: leave one out",
    ),
]


@pytest.mark.parametrize(("row", "given", "message"), REFUSALS)
def test_an_ambiguous_name_is_refused_with_what_to_give(row, given, message):
    with pytest.raises(ValueError, match=message):
        get_algorithm(row, **given)


def test_beta_is_where_trl_has_it():
    # GRPO's in the loss; RLOO's is taken off the reward (trl rloo_trainer.py, "rewards - self.beta * kl")
    assert get_algorithm("grpo", beta=0.01).kl_loss_coef == 0.01
    assert get_algorithm("rloo", beta=0.01).kl_coef == 0.01


def test_every_row_says_whose_it_is_and_where():
    rows = [*ALIASES.values(), *(row for values in VALUES.values() for row in values.values())]
    assert all(row.library and "/" in row.source for row in rows)
    assert {row.library for row in rows} >= {"TRL", "OpenRLHF", "AReaL", "verl", "slime", "NeMo-RL"}
    assert not ALIASES.keys() & {*Config.__dataclass_fields__, *PolicyGradient.__dataclass_fields__}


def test_the_table_takes_them_and_logs_the_conversion(caplog):
    with caplog.at_level(logging.INFO):
        row = get_algorithm("grpo", epsilon=0.1, delta=3.0)
    assert (row.clip_ratio_low, row.clip_ratio_high, row.clip_ratio_c) == (0.1, 0.1, 3.0)
    assert "algorithm grpo: delta 3.0 (TRL) is clip_ratio_c 3.0" in caplog.text
    plus = get_algorithm("grpo", kl_loss_type="k1+", kl_gradient=None)
    assert (plus.kl_loss_type, plus.kl_gradient) == ("k1", "unbiased")
    for name, value in knobs_of(ALGORITHMS["grpo"]).items():  # ours stay what they are, and unsaid
        if value is not None:
            assert converted({name: value}) == ({name: value}, [])


def test_the_command_line_takes_them_says_so_once_and_records_the_canonical_value(capsys, tmp_path: Path):
    config = parse(
        Config(),
        [
            "--epsilon",
            "0.1",
            "--num-minibatches=2",
            "--eps-clip-c=3",
            "--kl-loss-type",
            "low_var_kl",
            "--use_unbiased_kl",
            "--algo.kl.init_coef",
            "0.02",
            "--algorithm",
            "grpo",
            "--seed",
            "1",
        ],
    )
    assert (config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_c) == (0.1, 0.1, 3.0)
    assert (config.kl_loss_type, config.kl_coef, config.kl_gradient) == ("k3", 0.02, "unbiased")
    assert (config.seed, config.num_minibatches) == (1, 2)
    said = capsys.readouterr().err
    assert said.count("note: ") == 5
    assert "note: epsilon 0.1 (TRL) is clip_ratio_low 0.1 and clip_ratio_high 0.1\n" in said
    assert "note: algo.kl.init_coef 0.02 (OpenRLHF) is kl_coef 0.02\n" in said
    with RunDir(tmp_path / "run") as directory:
        directory.write_config(resolve(config, Machine.here()))
        recorded = json.loads((directory.path / "config.json").read_text())
    assert (recorded["clip_ratio_low"], recorded["kl_loss_type"], recorded["kl_coef"]) == (0.1, "k3", 0.02)
    written = resolve(Config(kl_loss_type="low_var_kl"), Machine.here())  # a recipe's own, in Python
    assert written.kl_loss_type == "k3"


@pytest.mark.parametrize(
    ("default", "argv", "message"),
    [
        (Config(), ["--algorithm", "cispo", "--epsilon-high", "5"], "Give cispo_ratio_high"),
        (Config(algorithm="cispo"), ["--epsilon-high", "5"], "Give cispo_ratio_high"),
        (Config(policy_loss="cispo"), ["--epsilon-high=5"], "Give cispo_ratio_high"),
        (Config(), ["--epsilon-hihg", "0.3"], "--epsilon-hihg; did you mean --epsilon-high, TRL's?"),
        (Config(), ["--kl-loss-type", "2"], "integer estimators mean different things"),
        (Config(), ["--epsilon", "0.2"], "clip_ratio_low and clip_ratio_high with num_minibatches = 1"),
        (PreferenceConfig(), ["--epsilon", "0.2"], "no effect on preference loss 'dpo'"),
        (PreferenceConfig(algorithm="simpo"), ["--gamma-simpo=1", "--gamma-beta-ratio=1"], "gamma"),
    ],
)
def test_the_command_line_refuses_what_is_ambiguous_or_without_effect(capsys, default, argv, message):
    with pytest.raises(SystemExit) as stopped:
        parse(default, argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_options_for_a_rule_and_switches_reach_the_row():
    config = parse(
        Config(),
        [
            "--loss-type",
            "sapo",
            "--sapo-temperature-neg",
            "1.1",
            "--sapo-temperature-pos",
            "2",
            "--use-rollout-logprobs",
            "--use-tis",
            "false",
        ],
    )
    row = config.make_algorithm()
    assert (row.policy_loss, row.rule_knobs) == ("sapo", {"tau_neg": 1.1, "tau_pos": 2.0})
    assert (row.bypass_mode, row.rollout_is, row.loss_agg_mode) == (True, "none", "seq-mean-token-mean")


def test_a_recipes_own_option_is_not_taken_for_anothers_name():
    assert converted_options(["--beta", "0.3"], {"beta"}, NOTHING) == (["--beta", "0.3"], [])
    assert parse(PreferenceConfig(), ["--beta", "0.3"]).beta == 0.3
