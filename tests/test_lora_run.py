"""Whole runs with an adapter: both ways to the engine, resume, evaluation, drills, the next run from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel

from rl.checkpoint import checkpoints_of
from rl.model import load_causal_lm
from scripts.export import export
from tests.finished_run import ROOT, FinishedRun, run_recipe
from tests.tiny import reference_logprobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IDS = [5, 9, 33, 20, 21, 12, 40, 8]


@pytest.fixture(scope="module", params=["merged", pytest.param("adapter", marks=pytest.mark.extra)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    path = tmp_path_factory.mktemp("runs") / "run"
    finished = run_recipe(path, ["--lora.rank", "8", "--lora.sync", request.param])
    assert finished.code == 0, finished.screen
    return finished


def test_it_learns_by_the_adapter_and_says_so(run: FinishedRun) -> None:
    assert "all frozen; a LoRA adapter learns (rank 8, alpha 16, beside all-linear" in run.screen
    (moved,) = {metrics["sync/bytes"] for metrics in run.metrics}
    config = json.loads((run.path / "config.json").read_text())
    if config["lora_sync"] == "adapter":
        saved: Any = checkpoints_of(run.path / "checkpoints")[0] / "adapter_model.safetensors"
        assert 0 < saved.stat().st_size - moved < 20_000  # the file has a header
    else:
        whole = load_causal_lm(config["model"])
        assert moved == 4 * sum(parameter.numel() for parameter in whole.parameters())
    assert all(metrics["gap/abs_max"] < 1e-4 for metrics in run.metrics)


def test_its_checkpoint_is_exported_either_way_to_equal_logprobs(run: FinishedRun, tmp_path: Path) -> None:
    base = json.loads((run.path / "config.json").read_text())["model"]
    checkpoint = checkpoints_of(run.path / "checkpoints")[0]
    export(checkpoint, tmp_path / "merged")
    export(checkpoint, tmp_path / "adapter", adapter=True)
    model: Any = PeftModel.from_pretrained(load_causal_lm(base), str(tmp_path / "adapter")).eval()
    adapted = reference_logprobs(model, IDS)
    merged = reference_logprobs(load_causal_lm(str(tmp_path / "merged")), IDS)
    np.testing.assert_allclose(merged, adapted, atol=1e-5)
    assert np.abs(adapted - reference_logprobs(load_causal_lm(base), IDS)).max() > 1e-3


def test_it_is_evaluated_and_replayed(run: FinishedRun, tmp_path: Path) -> None:
    def script(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = tmp_path / "evaluated"
    script("scripts.evaluate", "--model", str(run.path), "--num-tasks", "16", "--out", str(out))
    policy = json.loads((out / "evaluation.json").read_text())["policy"]
    assert policy["model"] == str(checkpoints_of(run.path / "checkpoints")[0])
    assert "the loss is equal to the bit" in script("scripts.replay", str(run.path), "2")


def test_the_next_run_goes_on_from_its_adapter(run: FinishedRun, tmp_path: Path) -> None:
    config = json.loads((run.path / "config.json").read_text())
    adapter = str(checkpoints_of(run.path / "checkpoints")[0])
    options = ["--model", config["model"], "--lora.adapter", adapter, "--lora.sync", config["lora_sync"]]
    onward = run_recipe(tmp_path / "run", [*options, "--num-steps", "1", "--learning-rate", "0"])
    assert onward.code == 0, onward.screen
    # The reference has the starting adapter too: with a learning rate of 0 nothing moves away from it.
    assert onward.metrics[0]["policy/kl_ref_k3"] < 1e-9


@pytest.mark.extra
def test_with_a_base_in_4_bits_engines_serve_the_rounded_model_from_the_start(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra bnb is not installed: nothing can be quantised")
    finished = run_recipe(tmp_path / "run", ["--lora.rank", "8", "--lora.base", "nf4"])
    assert finished.code == 0, finished.screen
    assert "all frozen, linear layers in nf4" in finished.screen
    assert all(metrics["gap/abs_max"] < 1e-4 for metrics in finished.metrics)
    checkpoint = checkpoints_of(tmp_path / "run" / "checkpoints")[0]
    assert json.loads((checkpoint / "base.json").read_text()) == {"lora_base": "nf4"}
    command = [sys.executable, "-m", "scripts.replay", str(tmp_path / "run"), "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert "the loss is equal to the bit" in done.stdout, done.stdout + done.stderr


@pytest.mark.extra
def test_it_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    options = ["--lora.rank", "4", "--determinism", "exact", "--max-wall-s", "600", "--save-every", "1"]
    whole = run_recipe(tmp_path / "whole", [*options, "--num-steps", "3", "--keep-checkpoints", "0"])
    assert whole.code == 0, whole.screen
    newest = checkpoints_of(tmp_path / "whole" / "checkpoints")[0]
    before = (newest / "adapter_model.safetensors").read_bytes()
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    newest.rmdir()
    command = [sys.executable, "-m", "recipes.calc_grpo", "--resume", str(tmp_path / "whole")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed after step 2" in done.stderr
    assert (newest / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(
            ["--sabotage", "skip_tensor"],
            "model.layers.0.mlp.down_proj.weight differs",
            marks=pytest.mark.extra,
        ),
        # on engines in tests/rl/test_lora_sync.py, in `make test`
        pytest.param(
            ["--sabotage", "no_adapter", "--lora.sync", "adapter"],
            "engine 0 serves the base",
            marks=pytest.mark.extra,
        ),
    ],
)
def test_a_sabotaged_sync_stops_the_run(tmp_path: Path, options: list[str], named: str) -> None:
    stopped = run_recipe(tmp_path / "run", ["--lora.rank", "8", *options])
    assert stopped.code == 3
    assert named in stopped.screen
