"""scripts.export: a whole model or an adapter that gives the log-probs of the trained policy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from rl.checkpoint import HASHES
from rl.learner import Learner
from rl.model_folder import model_problems
from rl.weights import wire_tensors
from rollout.tokenizer import load_tokenizer
from scripts.export import REFUSED, export, find_checkpoint, main
from tests.rl.test_lora import IDS, learner, trained
from tests.tiny import load, make_tiny_model, reference_logprobs


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return trained(make_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param))


@pytest.fixture
def run(own: Learner, tmp_path: Path) -> Path:
    """The directory of a run with one checkpoint, of an adapter."""
    own.checkpoint(str(tmp_path / "run" / "checkpoints" / "step_000003"), {})
    return tmp_path / "run"


def test_a_merged_model_is_what_engines_were_given(own: Learner, run: Path, tmp_path: Path) -> None:
    export(find_checkpoint(run), tmp_path / "merged")
    assert not [*model_problems(str(tmp_path / "merged"))]
    model = load(tmp_path / "merged")
    served = dict(wire_tensors(own.model, torch.float32))
    assert all(torch.equal(served[name], tensor) for name, tensor in model.named_parameters())
    answer = reference_logprobs(model, IDS)
    np.testing.assert_allclose(answer, own.score_sequences([IDS])[0], atol=2e-6)
    assert np.abs(answer - reference_logprobs(load(Path(own.spec.model)), IDS)).max() > 1e-2
    assert load_tokenizer(str(tmp_path / "merged")).get_vocab() == own.tokenizer.get_vocab()


def test_an_exported_adapter_reloads_to_equal_logprobs(own: Learner, run: Path, tmp_path: Path) -> None:
    export(find_checkpoint(run), tmp_path / "adapter", adapter=True)
    assert not (tmp_path / "adapter" / "training").exists()
    assert not (tmp_path / "adapter" / HASHES).exists()
    model: Any = PeftModel.from_pretrained(load(Path(own.spec.model)), str(tmp_path / "adapter")).eval()
    np.testing.assert_array_equal(reference_logprobs(model, IDS), own.score_sequences([IDS])[0])


def test_a_checkpoint_of_all_weights_is_exported_without_the_runs_state(tmp_path: Path) -> None:
    whole = learner(make_tiny_model(tmp_path / "model", tied=True), None)
    whole.checkpoint(str(tmp_path / "saved"), {})
    export(find_checkpoint(tmp_path / "saved"), tmp_path / "out")
    assert not (tmp_path / "out" / "training").exists()
    np.testing.assert_array_equal(
        reference_logprobs(load(tmp_path / "out"), IDS), whole.score_sequences([IDS])[0]
    )


def refusal(monkeypatch: Any, capsys: Any, *arguments: Path | str) -> str:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    assert main() == REFUSED
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    base = make_tiny_model(tmp_path / "model", tied=True)
    learner(base).checkpoint(str(tmp_path / "saved"), {})
    learner(base, None).checkpoint(str(tmp_path / "whole"), {})
    given = (monkeypatch, capsys)
    assert "no directory of a run" in refusal(*given, tmp_path, "--to", tmp_path / "out")
    whole = refusal(*given, tmp_path / "whole", "--to", tmp_path / "out", "--adapter")
    assert "holds a whole model, no adapter" in whole
    assert str(base) in refusal(*given, tmp_path / "saved", "--to", base)
    # The base has been trained on, in its place: the adapter would be merged into something else.
    make_tiny_model(base, tied=True, seed=5)
    assert "use the model that it was trained with" in refusal(
        *given, tmp_path / "saved", "--to", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
    told = "\n".join(model_problems(str(tmp_path / "saved")))
    assert f"give model {base} with --lora.adapter" in told
