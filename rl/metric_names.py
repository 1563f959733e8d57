"""Every metric of a run, defined once in words. A name with <angle brackets> stands for a family.

"Scored" trajectories have a reward. The others are in the counts that say so and in no other number.
"""

from __future__ import annotations

from envs.messages import ParseStatus, StopReason

UNSCORED = {
    "exception": "those of reward/errors whose reward raised; count",
    "timeout": "those whose reward did not finish within reward_timeout_s; count",
    "crashed": "those whose reward ended the process that it ran in; count",
    "invalid": "those whose reward returned no finite number, or no Score; count",
    "judge": "those whose judge gave no verdict that could be read; count",
    "world": "those whose reward said itself that it could not score, for what it needs had failed; count",
}

ROLLOUT_METRICS = {
    "rollout/reward_mean": "mean reward of the scored trajectories",
    "rollout/reward_std": "population standard deviation of their rewards, over the whole step",
    "rollout/reward_abs_max": "largest |reward| of a scored trajectory",
    "rollout/reward_group_std": "population standard deviation of the rewards within a group, mean over the "
    "groups with at least two scored members",
    "rollout/zero_variance_groups": "share of the groups with at least two scored members in which all "
    "rewards are equal: they have no relative advantage",
    "rollout/small_groups": "share of all groups that have fewer than two scored members",
    "rollout/success": "mean success, in [0, 1], of the scored trajectories that report it",
    "rollout/turns": "turns of a scored trajectory, mean",
    "rollout/response_tokens": "sampled tokens of a scored trajectory, mean",
    "rollout/response_tokens_max": "sampled tokens of a scored trajectory, largest",
    "rollout/truncated": "share of the scored trajectories that ran out of tokens",
    "rollout/tool_calls": "attempted tool calls of a scored trajectory, well-formed or not, mean",
    "rollout/tool_errors": "tool messages of a scored trajectory that report an error, mean",
    "rollout/tool_error_frac": "share of the scored trajectories' tool messages that report an error",
    "rollout/tool_timeouts": "tool calls of a scored trajectory that ran out of their time, mean",
    "rollout/trajectories": "trajectories that came back, unscored ones included; count",
    "rollout/unscored": "share of those that have no reward",
    "rollout/sampled_tokens": "all tokens that the step sampled: tokens/sampled + rollout/dropped_tokens",
    "rollout/sampled_trajectories": "all episodes that the step began: trajectories/sampled + "
    "rollout/dropped_trajectories",
    "rollout/dropped_groups": "groups sampled and replaced because their rewards were all equal, or because "
    "too few members had one; count",
    "rollout/dropped_tokens": "tokens sampled in dropped groups: spent, and not in tokens/sampled",
    "rollout/dropped_trajectories": "episodes of dropped groups, earlier attempts included; count",
    "rollout/close_errors": "episodes whose environment failed to close: they stand, it may have left things "
    "behind; count",
    "rollout/filled_groups": "groups whose rewards were all equal, kept for want of others; count",
    "reward/errors": "episodes that the reward was asked for and could not score; count",
    **{f"reward/unscored_{kind}": text for kind, text in UNSCORED.items()},
    "reward/<part>": "one named part of the score, mean over the scored trajectories that have it; a "
    "part with the name of a metric above is reward/part_<part>",
    "env/<metric>": "a metric that the environment reports, mean over the scored trajectories that have it",
    "error/<kind>": "trajectories, those of dropped groups too, whose last attempt ended in this error of "
    "the world; count",
    "unscored/<kind>": "trajectories, those of dropped groups too, whose reward failed in this way; count",
    "retry/<kind>": "attempts that ended in this error of the world and were followed by another; count",
    **{f"parse/{status}": f"share of attempted tool calls parsed as {status}" for status in ParseStatus},
    **{f"stop/{reason}": f"share of all trajectories that stopped for {reason}" for reason in StopReason},
}

TOKEN_METRICS = {
    "tokens/sampled": "tokens sampled in this step's groups, earlier attempts included; = trained + masked + "
    "dropped",
    "tokens/trained": "sampled tokens under the loss",
    "tokens/masked": "sampled tokens of trajectories that count in the statistics and are not trained on",
    "tokens/dropped": "sampled tokens of trajectories that are in no statistic and in no loss",
    "trajectories/sampled": "episodes of this step's groups, each earlier attempt one; = trained + masked + "
    "dropped",
    "trajectories/trained": "trajectories with a token under the loss; count",
    "trajectories/masked": "trajectories in the statistics that have no token under the loss; count",
    "trajectories/dropped": "trajectories that are in no statistic and in no loss; count",
    "dropped/<reason>": "trajectories/dropped by reason (rl/accounting.py); count",
    "dropped_tokens/<reason>": "tokens/dropped by reason",
    "tokens/per_s": "tokens/sampled a second of time/rollout_s",
    "version/oldest": "lowest policy version that sampled a token of this step",
    "version/newest": "highest policy version that sampled a token of this step",
    "version/staleness_mean": "learner's version less the version that sampled the token, mean over tokens",
    "version/staleness_max": "learner's version less the version that sampled the token, largest",
}

RESAMPLING_METRICS = {
    "roc/kept_positive_frac": "share of the trajectories with a reward above 0 that GRPO-RoC kept",
    "roc/kept_other_frac": "share of the other trajectories that it kept",
    "roc/penalty_kept": "mean penalty (failed calls, no answer) of the trajectories that it kept",
    "roc/penalty_dropped": "mean penalty of those that it left out",
}

SHAPE_METRICS = {
    "policy/z_loss": "mean of (log Z)² over trained tokens, Z the softmax's denominator; before z_loss_coef",
    "policy/router_loss": "load-balancing loss, num_experts_per_tok at an even load; before its coefficient",
}

REWARD_KL_METRICS = {
    "policy/kl_in_reward": "mean of log π_old - log π_ref over trained tokens, which rewards pay for, nats",
    "policy/kl_coef": "weight of that KL in this step's rewards; only where it is above 0",
}

SFT_METRICS = {
    "sft/loss": "mean of -log π over all trained tokens of an update, nats",
}

DISTILL_METRICS = {
    "distill/teacher_kl_k1": "mean of log π - log π_teacher over trained tokens, nats: the KL to the teacher",
    "distill/large_advantage_frac": "share of trained tokens with |advantage| above 5 nats",
}

OPTIMIZER_METRICS = {
    "optim/lr": "learning rate, mean over the step's updates",
    "optim/grad_norm": "global L2 norm of the gradient before clipping, mean over the step's updates",
    "optim/critic_grad_norm": "the same for the critic's parameters; only where there is one",
    "optim/skipped_updates": "share of the step's updates that were not applied: a gradient was not finite",
    "optim/loss_scale": "factor on the loss that keeps float16 gradients representable, mean over updates",
    "policy/first_ratio_error": "|ratio - 1| before the step's first update, largest of trained tokens",
}

SYNC_METRICS = {
    "sync/seconds": "weight sync with its proof, wall seconds",
    "sync/proof_seconds": "the part of sync/seconds that proved what the engines serve",
    "sync/bytes": "bytes of weights that went to the engines",
    "sync/canary_gap_max": "|log-prob difference| of a canary token between an engine and the learner, "
    "largest, nats",
}

TIME_METRICS = {
    "time/total_s": "the whole step, wall seconds",
    "time/rollout_s": "until this step's groups were there and scored, wall seconds",
    "time/generate_s": "time/rollout_s x the share of the trajectories' time spent waiting for the engine",
    "time/tools_s": "time/rollout_s x the share of the trajectories' time spent in environment and tools",
    "time/reward_s": "time/rollout_s x the share of the trajectories' time spent on scoring",
    "time/score_s": "the learner's log-probs before the update, wall seconds",
    "time/update_s": "the learner's optimizer updates, wall seconds",
    "time/train_s": "time/score_s + time/update_s",
    "time/sync_s": "weight sync with its proof, wall seconds",
    "time/other_s": "time/total_s less rollout, train and sync",
    "time/trajectory_p50_s": "seconds that one trajectory took, median",
    "time/trajectory_p95_s": "seconds that one trajectory took, 95th percentile",
    "time/trajectory_max_s": "seconds that one trajectory took, largest",
}

EVALUATION_METRICS = {
    "eval/success": "share of the held-out tasks that were solved; an unscored episode counts as not solved",
    "eval/success_low": "lower end of its 95 % interval over tasks; not with too few tasks",
    "eval/success_high": "upper end of that interval",
    "eval/unscored": "held-out episodes that could not be scored",
}
