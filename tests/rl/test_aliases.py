"""Names of other libraries: converted and said, or refused with the choice."""

from __future__ import annotations

import logging

import pytest

from recipes.cli import parse
from recipes.preference_config import PreferenceConfig
from rl.algorithms import get_algorithm
from rl.aliases import ALIASES, converted, converted_options
from rl.config import Config
from rl.policy_gradient import PolicyGradient

CONVERSIONS = [
    # algorithms.md 4.3, row by row: TRL, OpenRLHF, the others
    ({"epsilon": 0.1}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.1}),
    ({"epsilon": 0.1, "epsilon_high": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"eps_clip": 0.1, "eps_clip_higher": 0.3}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}),
    ({"eps_clip_low_high": "0.2 0.27"}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.27}),
    ({"delta": 4.0}, {"clip_ratio_c": 4.0}),
    ({"dual_clip": "3"}, {"clip_ratio_c": 3.0}),
    ({"c_clip": 3.0}, {"clip_ratio_c": 3.0}),
    ({"eps_clip_c": 3.0}, {"clip_ratio_c": 3.0}),
    ({"ratio_clip_c": 3.0}, {"clip_ratio_c": 3.0}),
    ({"scale_rewards": "group"}, {"adv_estimator": "grpo"}),
    ({"scale_rewards": "batch"}, {"adv_estimator": "lite_ppo"}),
    ({"scale_rewards": False}, {"adv_estimator": "dr_grpo"}),
    ({"norm_adv_by_std_in_grpo": False}, {"adv_estimator": "dr_grpo"}),
    ({"policy_loss_type": "gspo"}, {"importance_sampling_level": "sequence"}),
    ({"loss_type": "dapo"}, {"loss_agg_mode": "token-mean"}),
    ({"loss_type": "grpo"}, {"loss_agg_mode": "seq-mean-token-mean"}),
    ({"loss_agg": "token-mean"}, {"loss_agg_mode": "token-mean"}),
    ({"loss_reduction": "sequence_mean"}, {"loss_agg_mode": "seq-mean-token-mean"}),
    ({"beta": 0.04}, {"kl_loss_coef": 0.04}),
    ({"init_kl_coef": 0.01}, {"kl_coef": 0.01}),
    ({"kl_ctl": 0.1}, {"kl_coef": 0.1}),
    ({"use_kl_loss": False}, {"kl_loss_coef": 0.0}),
    ({"kl_estimator": "k2"}, {"kl_loss_type": "k2"}),
    ({"use_bias_correction_kl": True}, {"kl_gradient": "unbiased"}),
    ({"use_unbiased_kl": "false"}, {"kl_gradient": "naive"}),
    ({"vllm_importance_sampling_mode": "sequence_mask"}, {"rollout_is": "seq_mis"}),
    ({"vllm_importance_sampling_clip_max": 3.0}, {"rollout_is_threshold": 3.0}),
    ({"tis_clip": 2.0}, {"rollout_is": "token_tis", "rollout_is_threshold": 2.0}),
    ({"entropy_coef": 0.01}, {"entropy_coeff": 0.01}),
]


@pytest.mark.parametrize(("given", "expected"), CONVERSIONS)
def test_a_foreign_name_is_converted_and_said(given, expected):
    knobs, notes = converted(given)
    assert knobs == expected
    assert len(notes) == len(given)
    assert all(any(note.startswith(f"{name} ") for note in notes) for name in given)
    fields = PolicyGradient.__dataclass_fields__
    assert set(expected) <= set(fields)  # they are knobs of ours


REFUSALS = [
    ({"algorithm": "cispo", "epsilon_high": 5.0}, "Give cispo_ratio_high, the absolute cap"),
    ({"kl_estimator": 2}, "integer estimators mean different things"),
    ({"loss_type": "bnpo"}, "depends on how a batch is split; give loss_agg_mode token-mean"),
    ({"use_kl_loss": True}, "give kl_loss_coef, how much it weighs"),
    ({"scale_rewards": "maybe"}, "expected one of group, true, batch, none, false"),
    ({"eps_clip_low_high": "0.2"}, "expected two numbers"),
    ({"beta": 0.04, "kl_loss_coef": 0.1}, "sets kl_loss_coef, which is given too; leave one out"),
]


@pytest.mark.parametrize(("given", "message"), REFUSALS)
def test_an_ambiguous_name_is_refused_with_what_to_give(given, message):
    with pytest.raises(ValueError, match=message):
        converted(given)


def test_the_table_takes_them_and_logs_the_conversion(caplog):
    with caplog.at_level(logging.INFO):
        row = get_algorithm("grpo", epsilon=0.1, delta=3.0)
    assert (row.clip_ratio_low, row.clip_ratio_high, row.clip_ratio_c) == (0.1, 0.1, 3.0)
    assert "algorithm grpo: delta 3.0 (TRL) is clip_ratio_c 3.0" in caplog.text
    with pytest.raises(ValueError, match="integer estimators"):
        get_algorithm("grpo", kl_loss_type="2")
    plus = get_algorithm("grpo", kl_loss_type="k1+", kl_gradient=None)
    assert (plus.kl_loss_type, plus.kl_gradient) == ("k1", "unbiased")
    with pytest.raises(ValueError, match="Give cispo_ratio_high"):
        get_algorithm("cispo", epsilon_high=5.0)
    with pytest.raises(ValueError, match="trust region, here policy_loss 'dppo_tv'"):
        get_algorithm("grpo", policy_loss="ipo")


def test_the_command_line_takes_them_and_says_so(capsys):
    config = parse(Config(), ["--epsilon", "0.1", "--num-minibatches=2", "--eps-clip-c=3", "--seed", "1"])
    assert (config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_c) == (0.1, 0.1, 3.0)
    assert config.seed == 1
    said = capsys.readouterr().err
    assert "note: epsilon 0.1 (TRL) is clip_ratio_low 0.1 and clip_ratio_high 0.1" in said
    with pytest.raises(SystemExit) as stopped:
        parse(Config(), ["--algorithm", "cispo", "--epsilon-high", "5"])
    assert stopped.value.code == 2
    assert "Give cispo_ratio_high" in capsys.readouterr().err


def test_a_recipes_own_option_is_not_taken_for_anothers_name():
    assert converted_options(["--beta", "0.3"], frozenset({"beta"})) == (["--beta", "0.3"], [])
    assert parse(PreferenceConfig(), ["--beta", "0.3"]).beta == 0.3
    assert not (ALIASES.keys() & Config.__dataclass_fields__.keys())
