"""The other recipes, each a short real run: preferences, distillation, fine-tuning, learned rewards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl.checkpoint import checkpoints_of
from rl.metrics import check_names
from tests.finished_run import ROOT, FinishedRun, run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run whose recorded trajectories the others learn from."""
    finished = run_recipe(tmp_path_factory.mktemp("runs") / "grpo", ["--num-groups", "16"])
    assert finished.code == 0, finished.screen
    return finished


def sound(finished: FinishedRun, metric: str) -> None:
    assert finished.code == 0, finished.screen
    assert "SMOKE RUN SOUND" in finished.screen
    assert len(finished.metrics) == 3
    for step in finished.metrics:
        check_names(name for name in step if name != "step")
        assert metric in step
        assert step["sync/canary_gap_max"] < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(["--algorithm", "kto"], marks=pytest.mark.extra),
        pytest.param(["--algorithm", "simpo", "--swap-pairs"], marks=pytest.mark.extra),
    ],
)
def test_preferences(tmp_path: Path, options: list[str]) -> None:
    sound(run_recipe(tmp_path / "run", options, recipe="calc_dpo"), "preference/loss")


@pytest.mark.parametrize("algorithm", ["opd", pytest.param("opsd", marks=pytest.mark.extra), "jsd"])
def test_distillation(tmp_path: Path, grpo: FinishedRun, algorithm: str) -> None:
    teacher = [] if algorithm == "opsd" else ["--teacher", str(checkpoints_of(grpo.path / "checkpoints")[0])]
    options = ["--algorithm", algorithm, *teacher]
    sound(run_recipe(tmp_path / "run", options, recipe="calc_distill"), "distill/teacher_kl_k1")


@pytest.mark.extra
def test_distillation_from_the_teacher_that_the_recipe_makes(tmp_path: Path) -> None:
    sound(run_recipe(tmp_path / "run", [], recipe="calc_distill", timeout_s=500), "distill/teacher_kl_k1")


def test_fine_tuning_on_a_runs_trajectories(tmp_path: Path, grpo: FinishedRun) -> None:
    data = str(grpo.path / "trajectories.jsonl")
    sound(run_recipe(tmp_path / "run", ["--data", data], recipe="sft"), "sft/loss")


def test_a_reward_model_is_made_and_learned_from(tmp_path: Path, grpo: FinishedRun) -> None:
    out = tmp_path / "reward_model"
    data = str(grpo.path / "trajectories.jsonl")
    command = ["recipes.reward_model", "--data", data, "--out", str(out), "--num-steps", "20"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy on held-out pairs" in done.stdout
    sound(run_recipe(tmp_path / "run", ["--reward", f"reward_model:{out}"]), "reward/reward_model")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("sft", [], "give --data a run's trajectories.jsonl"),
        ("calc_grpo", ["--algorithm", "opd"], "learns from a teacher: name one with --teacher"),
        ("calc_grpo", ["--teacher", "x"], "teacher has no effect"),
        ("calc_dpo", ["--clip-ratio-low", "0.1"], "have no effect on preference loss"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, recipe: str, options: list[str], message: str) -> None:
    finished = run_recipe(tmp_path / "run", options, recipe=recipe)
    assert finished.code == 2
    assert message in " ".join(finished.screen.split())
    assert not (tmp_path / "run").exists()


def test_a_coefficient_follows_the_kl_and_tasks_come_again(tmp_path: Path) -> None:
    options = ["--algorithm", "rloo", "--kl-loss-coef", "0", "--target-kl", "0.01", "--kl-horizon", "100"]
    finished = run_recipe(tmp_path / "run", [*options, "--num-tasks", "5"])
    sound(finished, "policy/kl_coef")
    # 0 nats at first, then far more than 0.01: a fifth less and a fifth more, times 16 of 100 trajectories
    coefficients = [step["policy/kl_coef"] for step in finished.metrics]
    assert coefficients == pytest.approx([0.05, 0.05 * 0.968, 0.05 * 0.968 * 1.032])
    assert len({r.trajectory.episode.task.id for r in finished.records if r.split == "train"}) == 5


def test_filters_reach_the_engine_and_are_weighed(tmp_path: Path) -> None:
    finished = run_recipe(tmp_path / "run", ["--top-p", "0.8"])
    sound(finished, "gap/is_weight_mean")
    for step in finished.metrics:
        # what is cut away makes a token up to -log 0.8 = 0.223 nats likelier, and weighs it by at least 0.8
        assert 1e-3 < step["gap/abs_max"] < 0.2233
        assert 0.8 < step["gap/is_weight_mean"] < 1


def test_dynamic_sampling_stops_at_its_bound(tmp_path: Path) -> None:
    hard = ["--level", "5", "--max-turns", "12", "--max-total-tokens", "400", "--context-length", "512"]
    finished = run_recipe(tmp_path / "run", ["--algorithm", "dapo", "--max-draws-per-group", "2", *hard])
    assert finished.code == 3
    assert "8 tasks gave 0 of 4 groups with unequal rewards" in " ".join(finished.screen.split())


def test_the_policy_judges_itself(tmp_path: Path) -> None:
    """Agreement with the task's answer, by the log-probs of Y and N on the run's own engine."""
    judge = tmp_path / "judge.toml"
    judge.write_text(
        'mode = "agreement"\npolicy = "self"\ntemplate = "{first}={second}? Y/N"\nmax_chars = 30\n'
    )
    finished = run_recipe(tmp_path / "run", ["--reward", f"judge:{judge}"])
    sound(finished, "reward/judge/order_gap")
    for step in finished.metrics:
        assert step["rollout/unscored"] == 0
        assert 0 < step["rollout/reward_mean"] < 1
        assert step["rollout/reward_mean"] == pytest.approx(step["reward/judge/score"])
        assert step["reward/judge/calls"] == 2
