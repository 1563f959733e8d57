"""Whole runs with a learner of two ranks; what they saved, one process goes on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rl.checkpoint import checkpoints_of, verify
from tests.runs import recipe, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LOSSES = ("policy/loss", "policy/kl_ref_k3", "policy/entropy", "optim/lr", "optim/grad_norm")


@pytest.mark.parametrize(
    ("options", "communicator"),
    [
        pytest.param(
            ["--backend", "fsdp"], "gloo, reduce-scatter (FSDP2)", id="fsdp", marks=pytest.mark.extra
        ),
        pytest.param(
            ["--backend", "fsdp", "--lora.rank", "8"],
            "gloo, reduce-scatter (FSDP2)",
            id="fsdp-adapter",
            marks=pytest.mark.extra,
        ),
        pytest.param(
            ["--backend", "deepspeed", "--zero-stage", "3"],
            "gloo, reduce-scatter (DeepSpeed ZeRO 3)",
            id="zero-3",
        ),
    ],
)
def test_a_run_on_two_ranks_is_sound_and_one_process_goes_on_with_it(
    tmp_path: Path, options: list[str], communicator: str
) -> None:
    run = tmp_path / "run"
    settings = ["--smoke", "--eval-tasks", "8", "--save-every", "1", "--run-dir", str(run)]
    code, screen = recipe([*options, "--learner-ranks", "2", *settings])
    assert code == 0, screen
    assert communicator in screen
    assert "rank 1 of 2, float32, holds " in screen
    last, before = checkpoints_of(run / "checkpoints")[:2]
    verify(last)
    unbroken = rows(run / "metrics.jsonl")
    shutil.rmtree(last)
    code, screen = recipe(
        ["--resume", str(run), "--backend", "plain", "--learner-ranks", "1", "--zero-stage", "0"]
    )
    assert code == 0, screen
    assert f"resumed after step {len(unbroken) - 1} from {before}" in screen
    resumed = rows(run / "metrics.jsonl")
    assert len(resumed) == len(unbroken)
    # Sampled by weights that differ in the last bit: the same tokens, and so the same losses.
    assert resumed[-1]["tokens/trained"] == unbroken[-1]["tokens/trained"]
    for name in LOSSES:
        assert resumed[-1][name] == pytest.approx(unbroken[-1][name], rel=1e-3, abs=1e-6), name
