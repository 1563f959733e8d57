"""The rows of policy-gradient algorithms; a row differs from its parent where its paper does."""

from __future__ import annotations

from dataclasses import replace

from rl.policy_gradient import PolicyGradient

# Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300).
GRPO = PolicyGradient(
    name="grpo",
    adv_estimator="grpo",  # section 4.1.2
    clip_ratio_low=0.2,  # PPO's, arXiv 1707.06347, table 1; the paper states none
    clip_ratio_high=0.2,
    loss_agg_mode="seq-mean-token-mean",  # eq. 3
    kl_loss_coef=0.04,  # section 4.2
    kl_loss_type="k3",  # eq. 4
    # Not in the paper: corrects for what engine and learner disagree on; the cap is that of verl's preset.
    rollout_is="token_tis",
    rollout_is_threshold=2.0,
)

# Dr. GRPO (Understanding R1-Zero-Like Training, arXiv 2503.20783): neither of GRPO's two biased divisions.
DR_GRPO = replace(
    GRPO,
    name="dr_grpo",
    adv_estimator="dr_grpo",  # section 3.2: no division by the group's std
    loss_agg_mode="seq-mean-token-sum-norm",  # listing 1: divides by a constant, never by a length
    # Any constant gives the method, and scales the learning rate; 256 is TRL's default max_completion_length.
    loss_scale_factor=256.0,
    kl_loss_coef=0.0,  # section 3.2
)

# DAPO (arXiv 2503.14476). Its overlong penalty needs to know the longest response: give max_response_length
# and overlong_buffer_len.
DAPO = replace(
    GRPO,
    name="dapo",
    clip_ratio_high=0.28,  # section 3.1, clip-higher
    drop_uniform_groups=True,  # section 3.2
    dynamic_sampling=True,  # section 3.2
    loss_agg_mode="token-mean",  # section 3.3
    kl_loss_coef=0.0,  # section 2.3
)

# REINFORCE leave-one-out (Back to Basics, arXiv 2402.14740), with PPO's clip for several updates a batch.
RLOO = replace(
    GRPO,
    name="rloo",
    adv_estimator="rloo",  # section 3.2
    loss_agg_mode="seq-mean-token-sum",  # a response is one action: its log-prob is the sum
    kl_loss_coef=0.0,
    kl_coef=0.05,  # in the reward, section 2; 0.05 is TRL's RLOO default
)

# REINFORCE without a baseline (Williams 1992, Machine Learning 8:229-256).
REINFORCE = PolicyGradient(
    name="reinforce",
    adv_estimator="reinforce",
    policy_loss="reinforce",
    loss_agg_mode="seq-mean-token-sum",
)

# Group Sequence Policy Optimization (arXiv 2507.18071).
GSPO = replace(
    GRPO,
    name="gspo",
    importance_sampling_level="sequence",  # eq. 7
    clip_ratio_low=3e-4,  # section 5.1
    clip_ratio_high=4e-4,  # section 5.1
    kl_loss_coef=0.0,
)

# CISPO (MiniMax-M1, arXiv 2506.13585) as ScaleRL settled on it (arXiv 2510.13786).
CISPO = replace(
    GRPO,
    name="cispo",
    adv_estimator="lite_ppo",  # ScaleRL: divided by the std of the whole batch
    policy_loss="cispo",
    cispo_ratio_high=5.0,  # the absolute cap; TRL's recommended epsilon_high
    loss_agg_mode="token-mean",  # MiniMax-M1, eq. 4
    kl_loss_coef=0.0,
)

# What this library recommends where a paper is not to be reproduced: Dr. GRPO's advantage, DAPO's asymmetric
# clip and aggregation, and a dual clip (arXiv 1912.09729), which bounds the ratio where A < 0.
DEFAULT = replace(
    GRPO,
    name="default",
    adv_estimator="dr_grpo",
    drop_uniform_groups=True,  # as in DAPO, tinker, prime-rl and open-instruct; not replaced by others
    clip_ratio_high=0.28,
    clip_ratio_c=3.0,
    loss_agg_mode="token-mean",
    kl_loss_coef=0.0,
)

# REINFORCE++ (arXiv 2501.03262): whitened returns by token, the KL in the reward.
REINFORCE_PP = replace(
    GRPO,
    name="reinforce_pp",
    adv_estimator="reinforce_plus_plus",
    loss_agg_mode="token-mean",
    kl_loss_coef=0.0,
    kl_coef=0.01,  # OpenRLHF's default
)

# The same with the group's mean as baseline before whitening.
REINFORCE_PP_BASELINE = replace(
    REINFORCE_PP, name="reinforce_pp_baseline", adv_estimator="reinforce_plus_plus_baseline", kl_coef=0.0
)

# Proximal Policy Optimization (arXiv 1707.06347) with a critic, as RLHF uses it: KL in the reward, dual clip.
PPO = replace(
    GRPO,
    name="ppo",
    adv_estimator="gae",  # arXiv 1506.02438
    gamma=1.0,
    lam=1.0,  # the default of verl, OpenRLHF, AReaL and slime
    clip_ratio_c=3.0,  # arXiv 1912.09729
    loss_agg_mode="token-mean",
    kl_loss_coef=0.0,
    kl_coef=0.001,  # verl's default
    critic="head",
    cliprange_value=0.5,  # verl, OpenRLHF, AReaL
)

# Soft gates and other rules that are no interval of the ratio; each stands on Dr. GRPO's advantage with
# token-mean, so that the rule is what differs from `default`. Their knobs' sources are in rl/rules.py.
SAPO, DPPO, KIMI, TOPR, OPMD = (
    replace(DEFAULT, name=name, policy_loss=rule, clip_ratio_high=0.2, clip_ratio_c=None)
    for name, rule in (
        ("sapo", "sapo"),
        ("dppo", "dppo_tv"),
        ("kimi", "kimi"),
        ("topr", "topr"),
        ("opmd", "opmd"),
    )
)

# Geometric-Mean Policy Optimization (arXiv 2507.20673); its bounds are of the log-ratio.
GMPO = replace(
    GRPO, name="gmpo", policy_loss="gmpo", clip_ratio_low=0.4, clip_ratio_high=0.4, kl_loss_coef=0.0
)

# GRPO-RoC (rStar2-Agent, arXiv 2508.20722): of each group the half that came by its reward most cleanly.
ROC = replace(
    GRPO,
    name="roc",
    oversample=2,  # section 4.2: 32 sampled, 16 kept
    clip_ratio_high=0.28,  # section 4.1, after DAPO
    loss_agg_mode="token-mean",
    kl_loss_coef=0.0,  # section 4.1
)

# On-policy distillation (arXiv 2306.13649; tinker-cookbook): the student's own samples, each token credited
# with the teacher's log-prob less the student's. Rewards have no part in it.
OPD = PolicyGradient(
    name="opd",
    adv_estimator="opd",
    gamma=0.0,  # a token answers for itself alone, as in tinker-cookbook
    opd_kl_coef=1.0,  # of tinker-cookbook and slime
    policy_loss="importance_sampling",
    bypass_mode=True,  # the ratio is to the policy that sampled
    loss_agg_mode="token-mean",
)

# On-policy self-distillation (arXiv 2601.18734; prime-rl's opsd): the teacher is the policy itself before
# the update, told the answer. The paper compares whole distributions, this the sampled tokens, as opd does.
OPSD = replace(OPD, name="opsd", hint="answer: {answer}")

# Generalized knowledge distillation (arXiv 2306.13649): whole distributions compared on the same samples.
JSD = PolicyGradient(
    name="jsd",
    adv_estimator="reinforce",  # unused
    policy_loss="jsd",
    jsd_beta=0.5,  # TRL's GKD default
    bypass_mode=True,
    loss_agg_mode="token-mean",
)

# Value-based Augmented PPO (VAPO, arXiv 2504.05118): λ by length for the policy, 1 for the critic. Its
# value pretraining and its likelihood term on solved rollouts are not here.
VAPO = replace(
    PPO,
    name="vapo",
    adv_estimator="vapo",
    length_adaptive_alpha=0.05,  # section 4.2
    lam=1.0,  # of the critic, section 4.1
    clip_ratio_high=0.28,  # section 4.3, clip-higher
    clip_ratio_c=None,
    kl_coef=0.0,
)

# GDPO (arXiv 2601.05242): each part of the reward is normalized in its group before they are added.
GDPO = replace(GRPO, name="gdpo", adv_estimator="gdpo", loss_agg_mode="token-mean", kl_loss_coef=0.0)

# SPO (Single-stream Policy Optimization, arXiv 2509.13232): a prompt is compared with its own past, so one
# trajectory a prompt is enough; for tasks that come again (num_tasks). Clips of the recipe for verl.
SPO = replace(
    DEFAULT,
    name="spo",
    adv_estimator="spo",
    drop_uniform_groups=False,
    clip_ratio_high=0.28,
    clip_ratio_c=10.0,
)

# MaxRL: the mean of the group in the place of its std, so that rare successes weigh most.
MAXRL = replace(DEFAULT, name="maxrl", adv_estimator="maxrl")

# MT-GRPO (arXiv 2505.11821): the first turn is credited with its own reward besides the outcome.
MT_GRPO = replace(
    GRPO,
    name="mt_grpo",
    adv_estimator="mt_grpo",
    turn_advantage_coef=1.0,  # λ of the authors' code (Multi-Turn-RL-Agent)
)

# GiGPO (arXiv 2505.10978): turns of a group that followed the same observation are compared, too.
GIGPO = replace(
    GRPO,
    name="gigpo",
    adv_estimator="gigpo",  # F_norm = 1; gigpo_std divides by the std
    gamma=0.95,  # of the paper's experiments, as are the two below
    turn_advantage_coef=1.0,  # ω
    loss_agg_mode="token-mean",
    kl_loss_coef=0.01,
)

# Step-wise training as SkyRL, ROLL and verl-agent have it: each turn a sample of its own, with the advantage
# of the trajectory. A trajectory weighs the same whole or split, so what differs is the ratio: one a turn.
STEP_GSPO = replace(GSPO, name="step_gspo", step_wise=True)

ALGORITHMS: dict[str, PolicyGradient] = {
    row.name: row
    for row in (
        *(DEFAULT, GRPO, DR_GRPO, DAPO, RLOO, REINFORCE, REINFORCE_PP, REINFORCE_PP_BASELINE),
        *(GSPO, CISPO, SAPO, GMPO, DPPO, KIMI, TOPR, OPMD, PPO, VAPO, ROC, GDPO, MAXRL, SPO),
        *(MT_GRPO, GIGPO, STEP_GSPO, OPD, OPSD, JSD),
    )
}
