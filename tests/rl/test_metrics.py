import math

import pytest
import torch

from envs.messages import ParseStatus, StopReason, ToolCall, message
from rl.algorithms import get_algorithm
from rl.batch import make_batch
from rl.metrics import (
    METRICS,
    UndefinedMetricError,
    batch_metrics,
    check_names,
    mean_metrics,
    rollout_metrics,
    staleness_metrics,
    time_metrics,
)
from rl.numerics import max_share, mean_share, sum_share
from rl.screens import COLUMNS
from rollout.trajectory import TrajectoryError, Turn
from tests.made_trajectories import completion, group, trajectory

CALL = ToolCall(id="c", name="add")
UNKNOWN = ToolCall(id="d", name="ad", status=ParseStatus.UNKNOWN_TOOL)
BROKEN = trajectory(
    "broken",
    reward=None,
    stop_reason=StopReason.ERROR,
    error=TrajectoryError(kind="WorldError", message="gone"),
    turns=[Turn(parent=None, context_ids=(1,), completion=completion([7] * 100))],
)


def test_rewards_of_the_scored_only():
    groups = [
        group(trajectory("a", reward=1.0), trajectory("b", reward=0.0), BROKEN, index=0),
        group(trajectory("c", reward=0.5), trajectory("d", reward=0.5), index=1),
        group(trajectory("e", reward=3.0), index=2),
    ]
    metrics = rollout_metrics(groups)
    assert metrics["rollout/reward_mean"] == 1.0  # (1 + 0 + 0.5 + 0.5 + 3) / 5
    # squares of the deviations: 0, 1, 0.25, 0.25, 4; sum 5.5, / 5 = 1.1
    assert metrics["rollout/reward_std"] == pytest.approx(math.sqrt(1.1))
    assert metrics["rollout/reward_group_std"] == 0.25  # (0.5 + 0) / 2
    assert metrics["rollout/reward_abs_max"] == 3.0
    assert metrics["rollout/truncated"] == 0.0
    assert metrics["rollout/zero_variance_groups"] == 0.5  # of the two groups that can be compared
    assert metrics["rollout/small_groups"] == pytest.approx(1 / 3)
    assert metrics["rollout/unscored"] == pytest.approx(1 / 6)
    assert metrics["rollout/response_tokens"] == 2.0  # the 100 tokens of the broken one are in no mean
    assert metrics["stop/error"] == pytest.approx(1 / 6)
    assert metrics["stop/answered"] == pytest.approx(5 / 6)
    assert metrics["stop/max_turns"] == 0.0


def test_parts_and_success_are_means_over_those_that_have_them():
    groups = [
        group(
            trajectory("a", success=1.0, parts={"format": 1.0, "exact": 0.0}),
            trajectory("b", success=0.0, parts={"format": 0.5}),
            trajectory("c", parts={}),
        )
    ]
    metrics = rollout_metrics(groups)
    assert metrics["rollout/success"] == 0.5
    assert metrics["reward/format"] == 0.75
    assert metrics["reward/exact"] == 0.0


def test_tool_calls_by_parse_status_and_errors():
    said = [
        message("assistant", "", tool_calls=(CALL, UNKNOWN)),
        message("tool", "3"),
        message("tool", "error: no ad", is_error=True),
        message("assistant", "", tool_calls=(CALL, CALL)),
    ]
    metrics = rollout_metrics([group(trajectory("a", said=said), trajectory("b"))])
    assert metrics["rollout/tool_calls"] == 2.0  # (4 + 0) / 2
    assert metrics["rollout/tool_errors"] == 0.5
    assert metrics["rollout/tool_error_frac"] == 0.5  # 1 of 2 tool messages
    assert metrics["parse/ok"] == 0.75
    assert metrics["parse/unknown_tool"] == 0.25
    assert metrics["parse/malformed"] == 0.0


def test_an_environments_own_metrics_are_logged_unless_measured_already():
    own = {"depth": 4.0, "tool_calls": 9.0, "parse/ok": 9.0}
    metrics = rollout_metrics([group(trajectory("a", metrics=own), trajectory("b", metrics={"depth": 2.0}))])
    assert {name for name in metrics if name.startswith("env/")} == {"env/depth"}
    assert metrics["env/depth"] == 3.0


def test_what_has_no_value_is_absent_and_not_zero():
    metrics = rollout_metrics([group(BROKEN)])
    assert "rollout/reward_mean" not in metrics
    assert "rollout/success" not in metrics
    assert "parse/ok" not in metrics
    assert metrics["rollout/trajectories"] == 1.0
    assert rollout_metrics([]) == {"rollout/trajectories": 0.0}


def test_every_sampled_token_is_accounted_for():
    metrics = batch_metrics(make_batch([group(trajectory("a"), trajectory("b"), BROKEN)]))
    assert metrics["tokens/sampled"] == 104.0  # 2 + 2 + 100
    assert metrics["tokens/trained"] == 4.0
    assert metrics["tokens/dropped"] == 100.0
    assert metrics["tokens/masked"] == 0.0
    assert (metrics["dropped/error/WorldError"], metrics["dropped_tokens/error/WorldError"]) == (1.0, 100.0)
    check_names(metrics)


def test_trajectories_without_a_trained_token_are_counted_and_truncated_ones_are_a_share():
    cut = trajectory("cut", reward=-2.0, stop_reason=StopReason.MAX_TOTAL_TOKENS)
    groups = [group(cut, trajectory("whole"), trajectory("third")), group(BROKEN, index=1)]
    metrics = rollout_metrics(groups)
    assert metrics["rollout/truncated"] == pytest.approx(1 / 3)  # of the scored ones
    assert metrics["rollout/reward_abs_max"] == 2.0
    for truncated, count in (("keep", 0.0), ("mask", 1.0)):
        batch = get_algorithm("dr_grpo", truncated=truncated).assign_advantages(make_batch(groups))
        assert batch_metrics(batch)["trajectories/masked"] == count


def clipped(flags: list[float]) -> dict:
    values = torch.tensor(flags)
    return {
        "policy/clip_frac_low": mean_share(values, torch.ones_like(values)),
        "policy/ratio_max": max_share(values + 1, torch.ones_like(values, dtype=torch.bool)),
        "policy/loss": sum_share(values.sum()),
    }


def test_updates_are_pooled_by_token_and_not_averaged_as_means():
    metrics = mean_metrics([clipped([1, 0]), clipped([0] * 6)])
    assert metrics["policy/clip_frac_low"] == 1 / 8  # the mean of the means would be 1/4
    assert metrics["policy/ratio_max"] == 2.0
    assert metrics["policy/loss"] == 0.5  # (1 + 0) / 2 updates


def test_staleness_weighs_every_token_alike():
    old, new = completion([1, 2, 3], version=3), completion([4], version=5)
    turns = [
        Turn(parent=None, context_ids=(1,), completion=old),
        Turn(parent=0, context_ids=(), completion=new),
    ]
    groups = [group(trajectory("a", turns=turns))]
    assert staleness_metrics(groups, version=5) == {
        "version/staleness_mean": 1.5,  # (3 x 2 + 1 x 0) / 4
        "version/staleness_max": 2.0,
    }
    assert rollout_metrics(groups)["version/oldest"] == 3.0
    assert rollout_metrics(groups)["version/newest"] == 5.0


def test_the_wall_is_split_in_proportion_and_adds_up():
    groups = [
        group(
            trajectory("a", timings_s={"generate": 6.0, "tools": 1.0, "reward": 1.0}),
            trajectory("b", timings_s={"generate": 6.0, "tools": 2.0, "reward": 0.0}),
        )
    ]
    metrics = time_metrics(groups, rollout_s=8.0, train_s=3.0, sync_s=1.0, total_s=14.0)
    assert metrics["time/generate_s"] == 6.0  # 8 x 12 / 16
    assert metrics["time/tools_s"] == 1.5  # 8 x 3 / 16
    assert metrics["time/reward_s"] == 0.5  # 8 x 1 / 16
    assert metrics["time/other_s"] == 2.0  # 14 - 8 - 3 - 1
    assert metrics["time/trajectory_p50_s"] == 8.0
    assert metrics["time/trajectory_max_s"] == 8.0
    assert metrics["tokens/per_s"] == 0.5  # 4 / 8
    check_names(metrics)


def test_every_metric_of_a_step_is_defined():
    said = [message("assistant", "", tool_calls=(CALL,))]
    full = trajectory("a", said=said, success=1.0, parts={"x/y": 1.0}, metrics={"depth": 1.0})
    groups = [group(full, BROKEN)]
    check_names(rollout_metrics(groups) | staleness_metrics(groups, 1) | mean_metrics([clipped([1.0])]))
    check_names([f"eval/{name}" for name in rollout_metrics(groups)])


def test_an_undefined_metric_is_refused_with_the_nearest_name():
    with pytest.raises(
        UndefinedMetricError, match=r"'rollout/reward_men'.*did you mean 'rollout/reward_mean'"
    ):
        check_names(["rollout/reward_men"])
    with pytest.raises(UndefinedMetricError):
        check_names(["reward/"])  # a family needs a member's name


def test_every_definition_is_in_words():
    assert all(len(words.split()) >= 2 for words in METRICS.values())


def test_the_step_line_shows_defined_metrics_only():
    check_names(name for column in COLUMNS for name in column.names)
