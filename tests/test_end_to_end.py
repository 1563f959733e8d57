"""A short real run of the recipe: Ray, vLLM, learner, weight sync; what it wrote is checked from outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.splits import Split
from rl.algorithms import ALGORITHMS
from rl.metrics import check_names
from rollout.task_stream import TaskStream
from tests.finished_run import ROOT, FinishedRun, run_recipe
from tests.outside import solves
from tests.tiny import load, make_tiny_mixture, reference_logprobs

NUM_STEPS = 3
EXTRA = [pytest.mark.slow, pytest.mark.extra]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    path = tmp_path_factory.mktemp("runs") / "run"
    finished = run_recipe(
        path, ["--num-steps", str(NUM_STEPS), "--save-every", "1", "--keep-checkpoints", "0"]
    )
    assert finished.code == 0, finished.screen
    return finished


def test_the_screen_tells_the_placement_the_gap_and_the_verdict(run: FinishedRun) -> None:
    for part in (
        "learner -> engine 0",
        "4 tasks x 4 trajectories a task = 16 trajectories a step",
        "before any sync",
        "after a sync that changed every tensor",
        "starting policy",
        "trained policy",
        "SMOKE RUN SOUND",
    ):
        assert part in run.screen


def test_a_recorded_step_is_replayed_to_the_bit_and_a_changed_one_is_not(run: FinishedRun, tmp_path) -> None:
    def replayed(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.replay", str(path), str(NUM_STEPS)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    done = replayed(run.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"step {NUM_STEPS}: the loss is equal to the bit" in done.stdout
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    recorded = tmp_path / "run" / "trajectories.jsonl"
    lines = recorded.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if json.loads(line)["split"] == "train")
    row = json.loads(lines[place])
    row["score"]["value"] = 1.0 - row["score"]["value"]
    lines[place] = json.dumps(row)
    recorded.write_text("\n".join(lines) + "\n")
    done = replayed(tmp_path / "run")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT the one that was logged" in done.stdout


def test_every_step_is_measured_in_defined_words_and_accounts_for_every_token(run: FinishedRun) -> None:
    steps = run.metrics
    assert [step.pop("step") for step in steps] == [1, 2, 3]
    for number, step in enumerate(steps):
        check_names(step)
        assert (
            step["tokens/sampled"] == step["tokens/trained"] + step["tokens/masked"] + step["tokens/dropped"]
        )
        assert step["gap/abs_max"] < 1e-4
        assert step["sync/canary_gap_max"] < 1e-4
        assert step["version/newest"] == step["version/oldest"] == number  # synchronous
        assert step["version/staleness_max"] == 0
        assert step["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        # From then on a step's only update makes old_logprobs itself: nothing was scored to differ from.
        assert ("policy/first_ratio_error" in step) == (number == 0)
    assert steps[0]["policy/first_ratio_error"] < 1e-5


def test_recorded_logprobs_are_those_of_the_saved_policy_of_that_version(run: FinishedRun) -> None:
    base = Path(json.loads((run.path / "config.json").read_text())["model"])
    folders = [base, *(run.path / "checkpoints" / f"step_{step:06d}" for step in range(1, NUM_STEPS))]
    models = [load(folder) for folder in folders]
    trained = [record for record in run.records if record.split == "train"]
    assert len(trained) == NUM_STEPS * 16
    assert sum(len(record.trajectory.turns) > 1 for record in trained) > NUM_STEPS * 8
    for record in trained:
        trajectory = record.trajectory
        assert record.old_logprobs is not None
        for index, turn in enumerate(trajectory.turns):
            (span,) = turn.completion.version_spans
            assert span.version == record.step - 1
            prompt = trajectory.prompt_ids(index)
            reference = reference_logprobs(models[span.version], [*prompt, *turn.completion.token_ids])
            wanted = reference[len(prompt) - 1 :]
            np.testing.assert_allclose(turn.completion.logprobs, wanted, atol=1e-4)
            np.testing.assert_allclose(record.old_logprobs[index], wanted, atol=1e-4)


def test_a_prompt_is_the_previous_prompt_the_sampled_ids_and_the_tools_reply(run: FinishedRun) -> None:
    for record in run.records:
        for index, turn in enumerate(record.trajectory.turns[1:], start=1):
            before = record.trajectory.turns[index - 1]
            grown = record.trajectory.prompt_ids(index - 1) + before.completion.token_ids + turn.context_ids
            assert record.trajectory.prompt_ids(index) == grown


def test_an_agent_that_shares_no_code_with_ours_scores_the_policy_inside_the_printed_interval(
    run: FinishedRun,
) -> None:
    (line,) = [line for line in run.screen.splitlines() if line.strip().startswith("trained policy")]
    interval = re.search(r"95 % interval ([\d.]+)-([\d.]+)", line)
    assert interval is not None
    held_out = TaskStream(env="calc", level=1, run_seed=0, split=Split.HELD_OUT)
    expressions = [task.messages[-1].text for task in held_out.slice(0, 96)]
    share = solves(run.path / "checkpoints" / f"step_{NUM_STEPS:06d}", expressions, seed=0)
    assert float(interval[1]) <= share <= float(interval[2])


def test_a_run_directory_in_use_or_used_is_refused_at_once(run: FinishedRun) -> None:
    refused = run_recipe(run.path, [], timeout_s=60)
    assert refused.code != 0
    assert "is not empty" in refused.screen


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--algoritm", "rloo"], "--algorithm"),
        pytest.param(["--algorithm", "grop"], "grpo", marks=EXTRA),
        pytest.param(["--env", "clac"], "calc", marks=EXTRA),
        (["--level", "99"], "99"),
        pytest.param(["--num-minibatches", "3"], "does not divide", marks=pytest.mark.slow),
        pytest.param(["--kl-loss-type", "k9"], "k9", marks=EXTRA),
        (["--model", "/nowhere"], "/nowhere"),
        pytest.param(["--max-staleness", "2"], "max_staleness", marks=EXTRA),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tmp_path: Path, options: list[str], complaint: str
) -> None:
    refused = run_recipe(tmp_path / "run", options, timeout_s=60)
    assert refused.code == 2
    assert complaint in refused.screen
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drill", "named"),
    # tests/rollout/test_engine.py has every drill on an engine, in `make test`.
    [
        pytest.param("skip_tensor", "model.layers.0.mlp.down_proj.weight differs", marks=pytest.mark.extra),
        pytest.param(
            "skip_fused_half", "model.layers.0.self_attn.k_proj.weight differs", marks=pytest.mark.extra
        ),
        ("swap_rows", "model.layers.0.self_attn.o_proj.weight differs in 2 of"),
        pytest.param("no_retie", "lm_head.weight differs", marks=pytest.mark.extra),
        pytest.param("dead_copy", "model.norm.weight differs", marks=pytest.mark.extra),
        ("perturb_learner", "the log-prob gap between engine and learner before any sync"),
    ],
)
def test_a_sabotaged_run_stops_at_its_first_sync_and_names_the_culprit(
    tmp_path: Path, drill: str, named: str
) -> None:
    stopped = run_recipe(tmp_path / "run", ["--sabotage", drill])
    assert stopped.code == 3
    assert "STOPPED" in stopped.screen
    assert named in stopped.screen
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_algorithm_of_contributing_trains_from_a_users_own_file(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "my_algorithm.py").write_text(code)
    finished = run_recipe(tmp_path / "run", ["--algorithm", f"{tmp_path}/my_algorithm.py:ROW"])
    assert finished.code == 0, finished.screen
    assert "mine: advantage from_half, pulled (pull 0.1" in finished.screen
    assert len(finished.metrics) == NUM_STEPS


@pytest.mark.slow
def test_a_mixture_of_experts_is_trained_and_served_its_router_balanced(tmp_path: Path) -> None:
    model = make_tiny_mixture(tmp_path / "mixture")
    finished = run_recipe(tmp_path / "run", ["--model", str(model), "--router-aux-loss-coef", "0.01"])
    assert finished.code == 0, finished.screen
    losses = [step["policy/router_loss"] for step in finished.metrics]
    assert len(set(losses)) == NUM_STEPS
    assert 1.5 < min(losses) < max(losses) < 4  # 2: each of four experts gets an equal share, two a token
    assert max(step["sync/canary_gap_max"] for step in finished.metrics) < 1e-3


OTHERS = sorted(name for name, row in ALGORITHMS.items() if name != "grpo" and not row.loads_teacher)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    # All but two are left to `-m extra`: all learn in test_learns.py, and share the whole of a run.
    [
        pytest.param(name, marks=[pytest.mark.extra] if place % 16 else [])
        for place, name in enumerate(OTHERS)
    ],
)
def test_every_algorithm_runs(tmp_path: Path, algorithm: str) -> None:
    own = {"spo": ["--num-tasks", "8", "--num-minibatches", "2", "--micro-batch-size", "8"]}.get(
        algorithm, []
    )  # its tasks must come again
    finished = run_recipe(tmp_path / "run", ["--algorithm", algorithm, *own])
    assert finished.code == 0, finished.screen
    assert len(finished.metrics) == NUM_STEPS
