"""The numbers of a step: from what was sampled, from the batch, and averaged over its updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from envs.messages import Message, ParseStatus, StopReason
from envs.names import nearest
from rl.accounting import RETRIED
from rl.batch import TRUNCATED, TrainBatch
from rl.critic import CRITIC_METRICS
from rl.loss_metrics import LOSS_METRICS
from rl.metric_names import (
    DISTILL_METRICS,
    EVALUATION_METRICS,
    OPTIMIZER_METRICS,
    RESAMPLING_METRICS,
    REWARD_KL_METRICS,
    ROLLOUT_METRICS,
    SFT_METRICS,
    SHAPE_METRICS,
    SYNC_METRICS,
    TIME_METRICS,
    TOKEN_METRICS,
)
from rl.numerics import MetricSums, add_metrics, metric_values
from rl.preferences import PREFERENCE_METRICS
from rollout.trajectory import Trajectory, TrajectoryGroup, is_reward_error

Metrics = dict[str, float]
"""Metric name -> value. A metric without a value (a mean over nothing) is absent, never NaN or 0."""

METRICS: dict[str, str] = (
    ROLLOUT_METRICS
    | TOKEN_METRICS
    | LOSS_METRICS
    | CRITIC_METRICS
    | DISTILL_METRICS
    | SFT_METRICS
    | SHAPE_METRICS
    | RESAMPLING_METRICS
    | REWARD_KL_METRICS
    | PREFERENCE_METRICS
    | OPTIMIZER_METRICS
    | SYNC_METRICS
    | TIME_METRICS
    | EVALUATION_METRICS
)
"""Every metric in words. `reward/<part>` is a family; `eval/` before any name: the same on held-out tasks."""

_FAMILIES = tuple(name[: name.index("<")] for name in METRICS if "<" in name)


class UndefinedMetricError(ValueError):
    """A metric was logged that METRICS does not define."""


def check_names(metrics: Iterable[str]) -> None:
    """Raise UndefinedMetricError, with the nearest defined name, unless METRICS defines every name."""
    for logged in metrics:
        name = logged.removeprefix("eval/")
        in_family = any(name.startswith(family) and name != family for family in _FAMILIES)
        if name not in METRICS and logged not in METRICS and not in_family:
            near = nearest(name, METRICS)
            hint = f"did you mean {near!r}?" if near else "define it in rl/metric_names.py"
            raise UndefinedMetricError(f"metric {logged!r} is not defined in words; {hint}")


def mean_metrics(updates: Sequence[MetricSums]) -> Metrics:
    """A step's metrics from those of its updates: sum of numerators over sum of denominators.

    Never a mean of means: with 1 clipped of 2 tokens and 0 of 6, clip_frac is 1/8, not 1/4. A total (the
    loss) is an update's own: it is averaged over the updates that have it.
    """
    num_totals = Counter(name for update in updates for name, share in update.items() if share.kind == "sum")
    pooled = metric_values(add_metrics(updates))
    return {name: value / num_totals.get(name, 1) for name, value in pooled.items()}


def rollout_metrics(groups: Sequence[TrajectoryGroup]) -> Metrics:
    """What one step's groups say about the policy that sampled them: rollout/, reward/, parse/, stop/..."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    scored = [trajectory for trajectory in trajectories if trajectory.score.value is not None]
    metrics = _reward_metrics(groups, scored)
    metrics |= _behaviour_metrics(scored)
    metrics |= _counts(trajectories)
    return metrics


def _reward_metrics(groups: Sequence[TrajectoryGroup], scored: Sequence[Trajectory]) -> Metrics:
    rewards = list(chain.from_iterable(group.rewards for group in groups))
    stds = [float(np.std(group.rewards)) for group in groups if len(group.rewards) > 1]
    uniform = [min(group.rewards) == max(group.rewards) for group in groups if len(group.rewards) > 1]
    return (
        _mean("rollout/reward_mean", rewards)
        | ({"rollout/reward_std": float(np.std(rewards))} if rewards else {})
        | ({"rollout/reward_abs_max": float(np.abs(rewards).max())} if rewards else {})
        | _mean("rollout/reward_group_std", stds)
        | _mean("rollout/zero_variance_groups", uniform)
        | _mean("rollout/small_groups", [len(group.rewards) < 2 for group in groups])
        | _mean("rollout/success", [t.score.success for t in scored if t.score.success is not None])
        | _means_by_name("reward/", [_parts(trajectory) for trajectory in scored])
    )


def _parts(trajectory: Trajectory) -> Metrics:
    """The parts of a score, none under the name of a metric of ours."""
    parts = trajectory.score.parts
    return {f"part_{name}" if f"reward/{name}" in METRICS else name: value for name, value in parts.items()}


def _behaviour_metrics(scored: Sequence[Trajectory]) -> Metrics:
    lengths = [trajectory.num_sampled_tokens for trajectory in scored]
    transcripts = [trajectory.episode.transcript for trajectory in scored]
    results = [message for said in transcripts for message in said if message.role == "tool"]
    statuses = Counter(call.status for said in transcripts for message in said for call in message.tool_calls)
    metrics = (
        _mean("rollout/turns", [len(trajectory.turns) for trajectory in scored])
        | _mean("rollout/response_tokens", lengths)
        | ({"rollout/response_tokens_max": float(max(lengths))} if lengths else {})
        | _mean("rollout/truncated", [t.episode.stop_reason in TRUNCATED for t in scored])
        | _mean("rollout/tool_calls", [sum(len(m.tool_calls) for m in said) for said in transcripts])
        | _mean("rollout/tool_errors", [_num_tool_errors(said) for said in transcripts])
        | _mean("rollout/tool_timeouts", [t.episode.metrics.get("tool_timeouts", 0.0) for t in scored])
        | _mean("rollout/tool_error_frac", [message.is_error for message in results])
    )
    if statuses:
        metrics |= {f"parse/{status}": statuses[status] / statuses.total() for status in ParseStatus}
    # What is measured here for every environment is not repeated in the environment's own words.
    own = [
        {name: value for name, value in trajectory.episode.metrics.items() if not _is_measured(name)}
        for trajectory in scored
    ]
    return metrics | _means_by_name("env/", own)


def _counts(trajectories: Sequence[Trajectory]) -> Metrics:
    num_unscored = sum(trajectory.score.value is None for trajectory in trajectories)
    reasons = Counter(trajectory.episode.stop_reason for trajectory in trajectories)
    unscored = Counter(t.score.error_kind for t in trajectories if is_reward_error(t))
    versions = [s.version for t in trajectories for turn in t.turns for s in turn.completion.version_spans]
    metrics = {
        "rollout/trajectories": float(len(trajectories)),
        **{f"reward/unscored_{kind}": float(count) for kind, count in unscored.items()},
    }
    if trajectories:
        metrics["reward/errors"] = float(unscored.total())
        metrics["rollout/unscored"] = num_unscored / len(trajectories)
        metrics |= {f"stop/{reason}": reasons[reason] / len(trajectories) for reason in StopReason}
    if versions:
        metrics |= {"version/oldest": float(min(versions)), "version/newest": float(max(versions))}
    return metrics


def world_metrics(sampled: Sequence[TrajectoryGroup], kept: Sequence[TrajectoryGroup]) -> Metrics:
    """What the world did to a step's episodes, and what came in all, of every group that was `sampled`."""
    episodes = [trajectory for group in sampled for trajectory in group.trajectories]
    attempts = [attempt for trajectory in episodes for attempt in trajectory.attempts]
    indices = {group.index for group in kept}
    replaced = [t for group in sampled if group.index not in indices for t in group.trajectories]
    families = {
        "error": Counter(trajectory.error.kind for trajectory in episodes if trajectory.error),
        "unscored": Counter(t.score.error_kind for t in episodes if t.score.error_kind and not t.error),
        "retry": Counter(attempt.error.kind for attempt in attempts),
    }
    return {
        "rollout/sampled_tokens": float(sum(trajectory.num_spent_tokens for trajectory in episodes)),
        "rollout/sampled_trajectories": float(len(episodes) + len(attempts)),
        "rollout/dropped_trajectories": float(sum(1 + len(t.attempts) for t in replaced)),
        "rollout/close_errors": float(sum(trajectory.close_error is not None for trajectory in episodes)),
        **{f"{name}/{kind}": float(n) for name, kinds in families.items() for kind, n in kinds.items()},
    }


def batch_metrics(batch: TrainBatch) -> Metrics:
    """What became of every sampled token, and of every trajectory."""
    accounting = batch.accounting
    trained = {sample.trajectory_id for sample in batch.samples if sample.loss_mask.any()}
    num_tokens = sum(int(sample.loss_mask.sum()) for sample in batch.samples)
    num_attempts = accounting.dropped_trajectories.get(RETRIED, 0)
    return {
        **batch.facts,
        "tokens/sampled": float(accounting.num_sampled),
        "tokens/trained": float(num_tokens),
        "tokens/masked": float(accounting.num_masked),
        "tokens/dropped": float(sum(accounting.dropped.values())),
        "trajectories/sampled": float(accounting.num_trajectories + num_attempts),
        "trajectories/trained": float(len(trained)),
        "trajectories/masked": float(len(batch.trajectory_ids) - len(trained)),
        "trajectories/dropped": float(sum(accounting.dropped_trajectories.values())),
        **{f"dropped/{reason}": float(count) for reason, count in accounting.dropped_trajectories.items()},
        **{f"dropped_tokens/{reason}": float(count) for reason, count in accounting.dropped.items()},
    }


def staleness_metrics(groups: Sequence[TrajectoryGroup], version: int) -> Metrics:
    """How far the sampling policy lagged behind the learner's `version`, over every sampled token."""
    spans = [
        span
        for group in groups
        for trajectory in group.trajectories
        for turn in trajectory.turns
        for span in turn.completion.version_spans
        if span.end > span.start
    ]
    if not spans:
        return {}
    num_tokens = sum(span.end - span.start for span in spans)
    lag = sum((version - span.version) * (span.end - span.start) for span in spans)
    return {
        "version/staleness_mean": lag / num_tokens,
        "version/staleness_max": float(max(version - span.version for span in spans)),
    }


def time_metrics(
    groups: Sequence[TrajectoryGroup], *, rollout_s: float, train_s: float, sync_s: float, total_s: float
) -> Metrics:
    """Where a step's seconds went: generate + tools + reward = rollout; with train, sync and other = total.

    Trajectories run side by side, so their own seconds add up to more than the wall's: rollout is split in
    their proportion.
    """
    timings = [trajectory.timings_s for group in groups for trajectory in group.trajectories]
    metrics = {
        "time/total_s": total_s,
        "time/rollout_s": rollout_s,
        "time/train_s": train_s,
        "time/sync_s": sync_s,
        "time/other_s": total_s - rollout_s - train_s - sync_s,
    }
    seconds = [sum(timing.values()) for timing in timings]
    if sum(seconds) > 0:
        for part in ("generate", "tools", "reward"):
            spent = sum(timing.get(part, 0.0) for timing in timings)
            metrics[f"time/{part}_s"] = rollout_s * spent / sum(seconds)
        median, late = np.percentile(seconds, (50, 95))
        metrics |= {"time/trajectory_p50_s": float(median), "time/trajectory_p95_s": float(late)}
        metrics["time/trajectory_max_s"] = max(seconds)
    if rollout_s > 0:
        sampled = sum(trajectory.num_spent_tokens for group in groups for trajectory in group.trajectories)
        metrics["tokens/per_s"] = sampled / rollout_s
    return metrics


def _is_measured(name: str) -> bool:
    return name in METRICS or f"rollout/{name}" in METRICS


def _num_tool_errors(transcript: Sequence[Message]) -> int:
    return sum(message.role == "tool" and message.is_error for message in transcript)


def _mean(name: str, values: Sequence[float]) -> Metrics:
    return {name: sum(values) / len(values)} if values else {}


def _means_by_name(prefix: str, rows: Sequence[Mapping[str, float]]) -> Metrics:
    names = sorted({name for row in rows for name in row})
    return {f"{prefix}{name}": float(np.mean([row[name] for row in rows if name in row])) for name in names}
