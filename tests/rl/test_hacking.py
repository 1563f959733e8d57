"""The monitor of reward hacking: what it measures, when it warns, and how seldom it warns of nothing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from rl.batch import make_batch
from rl.config import Config
from rl.console import RunConsole
from rl.hacking import (
    CORRELATION,
    DISAGREEMENT,
    DUPLICATES,
    LENGTH,
    NEAR,
    REWARD,
    SIGNS,
    SUCCESS,
    HackMonitor,
    hack_metrics,
    letters,
    rank_correlation,
    shared,
    shift,
)
from rl.journal import Journal
from rl.metric_names import HACK_METRICS
from rl.run_dir import RunDir, RunState
from rollout.jsonl import read_jsonl
from tests.tiny import make_group

W = 10


def test_a_shift_is_a_difference_over_its_standard_error():
    # Means 2 and 5, variances 1 and 4, three steps each: 3 / sqrt(1/3 + 4/3) = 3 / 1.29099 = 2.32379
    found = shift([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert (found.before, found.after) == (2.0, 5.0)
    assert found.z == pytest.approx(2.32379, abs=1e-5)
    assert shift([1.0, 1.0], [1.0, 1.0]).z == 0.0
    assert shift([1.0, 1.0], [0.5, 0.5]).z == -inf


def test_duplicates_are_of_other_tasks():
    # "a" occurs at places 0 and 1: three of five. "b" twice, at one place only.
    said = [(0, "a"), (0, "a"), (1, "a"), (1, "b"), (1, "b")]
    assert shared(said) == 3 / 5
    assert letters("[calc 1+2]\n\n Done_!") == letters("calc 77 done") == "calc done"
    assert letters("Größe 3") == "größe"


def test_rank_correlation_with_ties():
    # Ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4: covariance 4.5 / 4, variances 4.5 / 4 and 5 / 4; 4.5 / sqrt(22.5)
    assert rank_correlation([0, 0, 1, 9], [1, 2, 3, 4]) == pytest.approx(0.948683, abs=1e-6)
    assert rank_correlation([1, 1], [1, 2]) is None


def group(index, members):
    """A group whose members are (text, reward, success, judge's score)."""
    made = make_group(index, [([[1], [2] * (place + 1)], 0.0) for place in range(len(members))])
    task = Task(id=str(index), env="calc", messages=())
    trajectories = tuple(
        replace(
            trajectory,
            episode=Episode(
                task=task, transcript=(message("assistant", text),), stop_reason=StopReason.ANSWERED
            ),
            score=Score(
                value=value,
                success=success,
                parts={} if judged is None else {"style/judge/score": judged},
                error=None if value is not None else "lost",
            ),
        )
        for trajectory, (text, value, success, judged) in zip(made.trajectories, members, strict=True)
    )
    return replace(made, trajectories=trajectories)


def test_a_steps_metrics_are_of_its_scored_trajectories():
    groups = [
        group(0, [("x 1", 0.0, 0.0, 1.0), ("x 1", 1.0, 1.0, 1.0)]),
        group(1, [("x 2", 0.0, 0.0, 0.5), ("x 1", None, None, None), ("y", 2.0, 1.0, None)]),
    ]
    metrics = hack_metrics(groups)
    assert metrics[DUPLICATES] == 0.0  # the other "x 1" is unscored
    assert metrics[NEAR] == 3 / 4
    assert metrics[DISAGREEMENT] == pytest.approx((1.0 + 0.0 + 0.5) / 3)
    # rewards 0, 1, 0, 2 and lengths 1, 2, 1, 3: the same order
    assert metrics[CORRELATION] == pytest.approx(1.0)
    assert hack_metrics([group(0, [("x", None, None, None)])]) == {}


def rows(seed, num_steps=2 * W, **ends):
    """Steps of noise around 0.5; `ends` are (metric, value) from which step W on another mean holds."""
    noise = np.random.default_rng(seed).normal(0.0, 0.02, (num_steps, 6))
    names = (REWARD, SUCCESS, LENGTH, DUPLICATES, NEAR, DISAGREEMENT)
    keys = dict(
        zip(("reward", "success", "length", "duplicates", "near", "disagreement"), names, strict=True)
    )
    later = {keys[name]: value for name, value in ends.items()}
    return [
        {
            name: float(later.get(name, 0.5) if step >= W else 0.5) + float(noise[step, at])
            for at, name in enumerate(names)
        }
        for step in range(num_steps)
    ]


def warned(steps, **options):
    monitor = HackMonitor(W, **options)
    return [(step, kind) for step, row in enumerate(steps, 1) for kind in monitor.observe(step, row)]


@pytest.mark.parametrize(
    ("ends", "kinds"),
    [
        ({"reward": 0.6, "success": 0.4}, {"reference"}),
        ({"reward": 0.6}, set()),
        ({"success": 0.4}, set()),
        ({"reward": 0.6, "success": 0.6}, set()),
        ({"reward": 0.4, "success": 0.4}, set()),
        ({"reward": 0.6, "success": 0.45}, {"reference"}),
        ({"length": 0.9}, {"length"}),
        ({"length": 0.2}, {"length"}),
        ({"length": 0.6}, set()),
        ({"duplicates": 0.7}, {"duplicates"}),
        ({"duplicates": 0.3}, set()),
        ({"near": 0.7}, {"near_duplicates"}),
        ({"disagreement": 0.7}, {"disagreement"}),
        ({"disagreement": 0.54}, set()),
    ],
)
def test_each_sign_is_warned_of_and_nothing_else(ends, kinds):
    assert {kind for _, kind in warned(rows(1, **ends))} == kinds


def test_no_step_counts_for_two_warnings_of_a_kind():
    told = warned(rows(2, 8 * W, duplicates=0.9))
    assert [kind for _, kind in told] == ["duplicates"]
    again = [*rows(2, duplicates=0.9), *rows(3, duplicates=0.9)]
    first, second = [step for step, kind in warned(again) if kind == "duplicates"]
    assert second - first >= 2 * W


def test_a_named_reference_is_watched_and_missed():
    steps = [{**row, "reward/exact": row[SUCCESS]} for row in rows(1, reward=0.6, success=0.4)]
    steps = [{name: value for name, value in row.items() if name != SUCCESS} for row in steps]
    assert {kind for _, kind in warned(steps, reference="reward/exact")} == {"reference"}
    assert warned(steps) == []  # there is no success
    monitor = HackMonitor(W, "reward/other")
    lines = [line for step, row in enumerate(steps, 1) for line in monitor.observe(step, row).values()]
    assert len(lines) == 1
    assert lines[0].startswith("the metric reward/other that was to be watched is not there")


def test_independent_noise_is_warned_of_in_two_runs_of_a_hundred_at_most():
    """So large that a difference is never too small to matter: z alone has to tell it from a change."""
    hits = 0
    for seed in range(100):
        steps = np.random.default_rng(seed).normal(size=(200, 6)) * 10.0
        names = (REWARD, SUCCESS, LENGTH, DUPLICATES, NEAR, DISAGREEMENT)
        hits += bool(warned([dict(zip(names, map(float, step), strict=True)) for step in steps]))
    assert hits <= 2


def test_a_resumed_monitor_goes_on_as_if_it_had_not_stopped():
    steps = rows(2, 6 * W, duplicates=0.9)
    whole = warned(steps)
    for cut in (3, W, 2 * W - 1, 2 * W + 1):
        first = HackMonitor(W)
        told = [(s, kind) for s, row in enumerate(steps[:cut], 1) for kind in first.observe(s, row)]
        state = json.loads(json.dumps(first.state()))
        second = HackMonitor(W, state=state)
        told += [(s, kind) for s, row in enumerate(steps[cut:], cut + 1) for kind in second.observe(s, row)]
        assert told == whole


def test_a_window_of_none_warns_of_nothing_and_keeps_nothing():
    monitor = HackMonitor(0)
    assert [monitor.observe(step, row) for step, row in enumerate(rows(1, duplicates=1.0), 1)] == [{}] * 2 * W
    assert monitor.state() == {"rows": [], "quiet_until": {}}


def test_every_kind_of_warning_is_a_metric_in_words():
    assert {f"hack/warned_{kind}" for kind in SIGNS} < set(HACK_METRICS)


def test_a_warning_is_on_the_console_once_in_the_metrics_and_survives_a_resume(tmp_path: Path):
    said = io.StringIO()
    steps = rows(1, 3 * W, reward=0.6, success=0.4)
    state = RunState()
    for part, resumed in ((steps[: W + 3], False), (steps[W + 3 :], True)):
        with RunDir(tmp_path / "run", resumed=resumed) as directory, RunConsole(3 * W, file=said) as console:
            journal = Journal(directory, Config(), console, decode=lambda ids: "", resumed=state)
            for step, row in enumerate(part, state.step + 1):
                groups = [group(step, [("x", 0.0, 0.0, None), ("y", 1.0, 1.0, None)])]
                journal.observe(groups, make_batch(groups))
                names = (REWARD, SUCCESS)
                journal.step(step, {name: row[name] for name in names})
            state = RunState(step=W + 3, monitor=json.loads(json.dumps(journal.monitor_state)))
    lines = [line for line in said.getvalue().splitlines() if line.startswith("WARNING")]
    assert len(lines) == 1
    assert lines[0].startswith("WARNING: step 20: the reward rose from 0.4972 to 0.6053 (z +11.7), while ")
    assert "rollout/success fell from 0.4904 to 0.4058" in lines[0]
    written = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert sum(row.get("hack/warned_reference", 0) for row in written) == 1
    assert {row["hack/duplicates"] for row in written} == {0.0}
