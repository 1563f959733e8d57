"""Other libraries' names of knobs, converted to ours; ambiguous ones are refused with what to give instead.

verl's names are ours (its yaml configurations). Every other name is a row of ALIASES: whose it is, the file
where that library defines it, and the conversion. VALUES are other libraries' values of names that are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl.alias_converters import (
    Convert,
    Knobs,
    beta,
    both_clips,
    by_value,
    chosen,
    coefficient_switch,
    completion_length,
    kl_place,
    loss_type,
    masked_weights,
    openrlhf_correction,
    part_of,
    refused,
    renamed,
    reward_scale,
    rule_knob,
    switched,
    tis_cap,
    tis_floor,
    two_clips,
    two_sided_delta,
    upper_clip,
    verl_level,
)


@dataclass(frozen=True, slots=True)
class Alias:
    """One foreign name or value: whose it is and where it is defined there, and what it is here."""

    library: str
    source: str
    convert: Convert


def table(library: str, source: str, **names: Convert) -> dict[str, Alias]:
    """Rows of one library and file."""
    return {name: Alias(library, source, convert) for name, convert in names.items()}


UNBIASED = switched({"kl_gradient": "unbiased"}, {"kl_gradient": "naive"})
INTEGER_KL = (
    "integer estimators mean different things (open-instruct's 2 is k3, its 3 is r k1); give k1, k2 or k3"
)
KL_VALUES: dict[str, Knobs | str] = {
    "low_var_kl": {"kl_loss_type": "k3"},
    "kl": {"kl_loss_type": "k1"},
    "mse": {"kl_loss_type": "k2"},
    # verl's straight-through forms, whose gradient is unbiased
    **{f"{name}+": {"kl_loss_type": name, "kl_gradient": "unbiased"} for name in ("k1", "k2", "k3")},
    **{str(index): INTEGER_KL for index in range(4)},
}
KL_ESTIMATOR = chosen({**{name: {"kl_loss_type": name} for name in ("k1", "k2", "k3")}, **KL_VALUES})
SEQUENCE_RATIO = {"policy_loss": "ppo", "importance_sampling_level": "sequence"}
POLICY_LOSSES: dict[str, Knobs | str] = {
    "geo_mean": {"policy_loss": "gmpo"},
    "dro": {"policy_loss": "kimi"},
    "kimi15": {"policy_loss": "kimi"},
    "gpg": {"policy_loss": "reinforce"},
    "gspo": {**SEQUENCE_RATIO, "loss_agg_mode": "seq-mean-token-mean"},
    "vanilla": "verl's vanilla is PPO's clip, policy_loss ppo; ROLL's is REINFORCE, policy_loss reinforce",
    "ipo": "names two things: a preference loss, DPO's relative (recipes.calc_dpo --algorithm ipo), and "
    "prime-rl's trust region, here policy_loss dppo_tv",
}
LOSS_TYPES: dict[str, Knobs | str] = {
    "grpo": {"loss_agg_mode": "seq-mean-token-mean"},
    "dapo": {"loss_agg_mode": "token-mean"},
    "dr_grpo": {"loss_agg_mode": "seq-mean-token-sum-norm"},
    "cispo": {"policy_loss": "cispo", "loss_agg_mode": "token-mean"},
    "sapo": {"policy_loss": "sapo", "loss_agg_mode": "seq-mean-token-mean"},
    "luspo": {"policy_loss": "luspo", "loss_agg_mode": "seq-mean-token-mean"},
    "vespo": {"policy_loss": "vespo", "loss_agg_mode": "token-mean"},
    "bnpo": "a mean of micro-batches' means, which depends on how a batch is split; give loss_agg_mode "
    "token-mean, the mean over the whole update",
    **{
        name: f"a preference loss: run recipes.calc_dpo with --algorithm {row}"
        for name, row in {
            "sigmoid": "dpo",
            **{own: own for own in ("ipo", "hinge", "robust", "simpo")},
        }.items()
    },
}
ESTIMATORS: dict[str, Knobs | str] = {
    "reinforce": {"adv_estimator": "reinforce_plus_plus"},  # OpenRLHF whitens its returns over the batch
    "reinforce_baseline": {"adv_estimator": "reinforce_plus_plus_baseline"},
    "group_norm": {"adv_estimator": "grpo"},
    "ppo": {"adv_estimator": "gae"},
    "gspo": {"adv_estimator": "grpo", **SEQUENCE_RATIO},
    **{
        name: {"adv_estimator": name}
        for name in ("gae", "rloo", "grpo", "dr_grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
    },
}
AGGREGATIONS = chosen(
    {
        **{
            name: {"loss_agg_mode": name}
            for name in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum")
        },
        "token_mean": {"loss_agg_mode": "token-mean"},
        "sequence_mean": {"loss_agg_mode": "seq-mean-token-mean"},
    }
)
BY_TOKEN = switched({"loss_agg_mode": "token-mean"}, {"loss_agg_mode": "seq-mean-token-mean"})
TRL_MODES = {
    "token_truncate": chosen({"token_truncate": {"rollout_is": "token_tis"}}),
    "token_mask": masked_weights("token_icepop", "vllm_importance_sampling_clip_min"),
    "sequence_truncate": chosen({"sequence_truncate": {"rollout_is": "seq_tis"}}),
    "sequence_mask": masked_weights("seq_mis", "vllm_importance_sampling_clip_min"),
}
NO_CORRECTION = chosen({"disabled": {"rollout_is": "none"}})

ALIASES: dict[str, Alias] = {
    **table(
        "verl",
        "verl/trainer/config",
        clip_ratio=both_clips,
        loss_mode=chosen(
            {**POLICY_LOSSES, **{n: {"policy_loss": n} for n in ("clip_cov", "kl_cov", "cispo", "sapo")}}
        ),
        norm_adv_by_std=reward_scale,
        norm_adv_by_std_in_grpo=reward_scale,
        use_kl_loss=coefficient_switch("kl_loss_coef", "kl_init_coef", "init_kl_coef"),
        use_kl_in_reward=coefficient_switch("kl_coef"),
        kl_penalty=chosen({"kl": {}, "k1": {}}),
    ),
    **table(
        "TRL",
        "trl/trainer/grpo_config.py",
        epsilon=both_clips,
        epsilon_high=upper_clip,
        delta=two_sided_delta,
        scale_rewards=reward_scale,
        loss_type=loss_type(LOSS_TYPES),
        max_completion_length=completion_length,
        beta=beta,
        use_bias_correction_kl=UNBIASED,
        entropy_coef=renamed("entropy_coeff"),
        mask_truncated_completions=switched({"truncated": "mask"}, {"truncated": "keep"}),
        vllm_importance_sampling_mode=by_value(TRL_MODES),
        vllm_importance_sampling_clip_max=renamed("rollout_is_threshold"),
        vllm_importance_sampling_clip_min=renamed("rollout_is_threshold_lower"),
        vllm_importance_sampling_cap=renamed("rollout_is_threshold"),
        sapo_temperature_pos=rule_knob("tau_pos"),
        sapo_temperature_neg=rule_knob("tau_neg"),
        **{f"vespo_{knob}": rule_knob(knob) for knob in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")},
    ),
    **table(
        "OpenRLHF",
        "openrlhf/cli/train_ppo_ray.py",
        eps_clip_low_high=two_clips,
        dual_clip=renamed("clip_ratio_c"),
        advantage_estimator=chosen(ESTIMATORS),
        lambd=renamed("lam"),
        value_clip=renamed("cliprange_value"),
        policy_loss_type=chosen({"ppo": {"policy_loss": "ppo"}, "gspo": POLICY_LOSSES["gspo"]}),
        loss_agg=AGGREGATIONS,
        kl_init_coef=kl_place,
        init_kl_coef=kl_place,
        kl_use_loss=coefficient_switch("kl_loss_coef", "kl_init_coef", "init_kl_coef"),
        kl_estimator=KL_ESTIMATOR,
        unbiased_gradient=UNBIASED,
        kl_unbiased_gradient=UNBIASED,
        is_correction_level=openrlhf_correction,
        is_correction_mode=part_of("is_correction_level"),
        is_correction_threshold=part_of("is_correction_level"),
    ),
    **table(
        "AReaL",
        "areal/api/cli_args.py",
        eps_clip=both_clips,  # OpenRLHF's and slime's, too
        eps_clip_higher=upper_clip,
        c_clip=renamed("clip_ratio_c"),
        kl_ctl=renamed("kl_coef"),
        behave_imp_weight_cap=renamed("rollout_is_threshold"),
        behave_imp_weight_mode=by_value({**TRL_MODES, "disabled": NO_CORRECTION}),
        adv_norm=refused(
            "AReaL normalizes over tokens, so that long rows weigh more; give adv_estimator "
            "reinforce_plus_plus_baseline for that, grpo, dr_grpo or lite_ppo for one over trajectories"
        ),
    ),
    **table(
        "slime",
        "slime/utils/arguments.py",
        eps_clip_high=upper_clip,
        eps_clip_c=renamed("clip_ratio_c"),
        use_unbiased_kl=UNBIASED,
        use_tis=switched({"rollout_is": "token_tis"}, {"rollout_is": "none"}),
        tis_clip=tis_cap,
        tis_clip_low=tis_floor,
        use_rollout_logprobs=switched({"bypass_mode": True}, {"bypass_mode": False}),
        calculate_per_token_loss=BY_TOKEN,
    ),
    **table(
        "NeMo-RL",
        "nemo_rl/algorithms/loss_functions.py",
        ratio_clip_min=renamed("clip_ratio_low"),
        ratio_clip_max=upper_clip,
        ratio_clip_c=renamed("clip_ratio_c"),
        reference_policy_kl_penalty=renamed("kl_loss_coef"),
        reference_policy_kl_type=KL_ESTIMATOR,
        token_level_loss=BY_TOKEN,
    ),
    **table(
        "SkyRL",
        "skyrl/train/config/ppo_base_config.yaml",
        loss_reduction=AGGREGATIONS,
        eps_clip_low=renamed("clip_ratio_low"),
    ),
    **table(
        "ROLL", "roll/configs/base_config.py", pg_clip=both_clips, entropy_loss_coef=renamed("entropy_coeff")
    ),
    **table(
        "open-instruct",
        "open_instruct/grpo_utils.py",
        clip_lower=renamed("clip_ratio_low"),
        clip_higher=upper_clip,
    ),
}
"""Every foreign name, as it is spelled in Python: dashes and dots are underscores."""

VALUES: dict[str, dict[str, Alias]] = {
    knob: {value: Alias(library, source, convert) for value in values}
    for knob, library, source, values, convert in (
        ("kl_loss_type", "verl, slime", "verl/trainer/ppo/core_algos.py", KL_VALUES, chosen(KL_VALUES)),
        ("policy_loss", "verl, ROLL", "verl/trainer/ppo/core_algos.py", POLICY_LOSSES, chosen(POLICY_LOSSES)),
        (
            "rollout_is",
            "verl",
            "verl/trainer/config/algorithm.py",
            ("token", "sequence", "null"),
            verl_level,
        ),
    )
}
"""Other libraries' values of our knobs."""
