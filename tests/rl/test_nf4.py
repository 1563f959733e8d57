"""A base in 4 bits (QLoRA): the learner computes with what engines are sent; the base stays."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rl.checkpoint import CheckpointError
from rl.learner import Learner
from rl.lora_settings import LoraSpec
from rl.precision import Precision
from rl.weights import wire_tensors
from scripts.export import REFUSED, export, find_checkpoint, main
from tests.rl.test_lora import (
    FRESH,
    IDS,
    WITH_TOKENS,
    adapter_of,
    base_bytes,
    learner,
    ready,
    scored,
    trained,
)
from tests.tiny import load, make_tiny_model, reference_logprobs

pytest.importorskip("bitsandbytes", reason="the extra bnb is not installed: nothing can be quantised")

from rl.model_nf4 import FrozenLinear4bit, dequantized, load_nf4

NF4 = replace(FRESH, base="nf4")
BLOCK = 64
CODES = (  # arXiv 2305.14314, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tied"), tied=True)


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FrozenLinear4bit)}


def rounded(folder: Path, to: Path) -> Path:
    """The model of `folder` saved as what its 4 bits stand for, in float32."""
    model, held = load(folder), load_nf4(str(folder))
    with torch.no_grad():
        for name, layer in quantized_layers(held).items():
            model.get_parameter(f"{name}.weight").copy_(dequantized(layer.weight))
    model.save_pretrained(to)
    learner(folder, None).tokenizer.save_pretrained(to)
    return to


def with_adapter_of(own: Learner, other: Learner) -> Learner:
    with torch.no_grad():
        for mine, theirs in zip(adapter_of(own).parameters(), adapter_of(other).parameters(), strict=True):
            mine.copy_(theirs)
    return own


def test_linear_layers_but_the_head_are_rounded_to_the_nearest_of_sixteen_codes(folder: Path) -> None:
    held, whole = load_nf4(str(folder)), load(folder)
    kept = {name for name, module in held.named_modules() if type(module) in (nn.Linear, nn.Embedding)}
    assert kept == {"model.embed_tokens", "lm_head"}
    assert len(quantized_layers(held)) == 2 * 7
    codes = torch.tensor(CODES)
    for name, layer in quantized_layers(held).items():
        assert layer.weight.nbytes * 8 == layer.weight.quant_state.shape.numel() * 4
        assert layer.weight.quant_state.nested  # the scales are quantised too
        blocks = whole.get_parameter(f"{name}.weight").detach().reshape(-1, BLOCK)
        scales = blocks.abs().amax(1, keepdim=True)
        nearest = codes[((blocks / scales)[..., None] - codes).abs().argmin(-1)] * scales
        # Scales in 8 bits differ by a hundredth at most; a code one off, by 0.08 of the scale or more.
        error = (dequantized(layer.weight).reshape(-1, BLOCK) - nearest).abs() / scales
        assert error.max() < 0.02
        assert error.max() > 0


def test_it_learns_as_a_whole_model_of_the_rounded_weights_does(folder: Path, tmp_path: Path) -> None:
    whole = learner(rounded(folder, tmp_path / "rounded"))
    own = with_adapter_of(learner(folder, NF4), whole)
    assert base_bytes(own) == base_bytes(whole)
    assert own.facts() == whole.facts()
    for _ in range(2):
        for mine, theirs in zip(
            scored(own, folder)[0] + scored(own, folder)[1],
            scored(whole, folder)[0] + scored(whole, folder)[1],
            strict=True,
        ):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
        own.update(ready(own, folder))
        whole.update(ready(whole, folder))
        for mine, theirs in zip(adapter_of(own).parameters(), adapter_of(whole).parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for (name, mine), (other, theirs) in zip(
        wire_tensors(own.model, torch.float32), wire_tensors(whole.model, torch.float32), strict=True
    ):
        assert name == other
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_what_engines_are_sent_answers_as_the_learner_and_the_base_stays_to_the_bit(folder: Path) -> None:
    own = learner(folder, NF4)
    before = base_bytes(own)
    codes = {name: layer.weight.data.clone() for name, layer in quantized_layers(own.model).items()}
    start = own.score_sequences([IDS])[0]
    for version in range(2):
        own.update(ready(own, folder))
        own.publish(version)
        own.perturb(1e-2, seed=version)
        assert base_bytes(own) != before  # norms and embedding
        own.restore()
    own.close()
    assert base_bytes(own) == before
    assert all(torch.equal(c, quantized_layers(own.model)[name].weight.data) for name, c in codes.items())
    assert {p.dtype for p in own.model.parameters() if p.requires_grad} == {torch.float32}
    model = load(folder)
    model.load_state_dict(dict(wire_tensors(own.model, torch.float32)), strict=False)
    model.tie_weights()
    answer = own.score_sequences([IDS])[0]
    np.testing.assert_allclose(answer, reference_logprobs(model, IDS), atol=2e-6)
    assert np.abs(answer - start).max() > 1e-3
    # Without its adapter it is the rounded model, which is not the folder's.
    np.testing.assert_array_equal(own.score_base_sequences([IDS])[0], start)
    assert np.abs(start - reference_logprobs(load(folder), IDS)).max() > 1e-3


def test_the_layer_is_nn_linear_of_its_rounded_weight_and_keeps_its_bias(tied: Path) -> None:
    layer = quantized_layers(load_nf4(str(tied)))["model.layers.0.mlp.up_proj"]
    layer.bias = nn.Parameter(torch.randn(layer.out_features) / 3, requires_grad=False)
    plain = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        plain.weight.copy_(dequantized(layer.weight))
        plain.bias.copy_(layer.bias)
    rows = torch.randn(5, layer.in_features)
    with torch.no_grad():  # first without gradients: bitsandbytes would pack the codes for good
        assert torch.equal(layer(rows), plain(rows))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
        inputs = [rows.clone().requires_grad_() for _ in range(2)]
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            answers = [one(x) for one, x in zip((layer, plain), inputs, strict=True)]
        assert answers[0].dtype == dtype
        assert torch.equal(*answers)
        for answer in answers:
            answer.float().square().sum().backward()
        assert inputs[0].grad is not None
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=tolerance, atol=tolerance)
    assert torch.equal(layer.bias, plain.bias)


def test_an_adapter_of_the_embedding_learns_beside_it_in_half_precision_too(tied: Path) -> None:
    own = learner(tied, replace(NF4, targets=WITH_TOKENS.targets[:2]), precision=Precision(model="bfloat16"))
    before = base_bytes(own)
    own.update(ready(own, tied))
    assert base_bytes(own) == before
    assert any(".lora_embedding_" in name for name in adapter_of(own).tensors())
    assert all(tensor.abs().sum() > 0 for tensor in adapter_of(own).parameters())


def test_a_run_goes_on_bit_for_bit_and_only_beside_the_same_base(tied: Path, tmp_path: Path) -> None:
    unbroken = trained(tied, NF4)
    unbroken.checkpoint(str(tmp_path / "saved"), {})
    resumed = learner(tied, NF4, seed=9)
    resumed.resume(str(tmp_path / "saved"))
    for own in (unbroken, resumed):
        own.update(ready(own, tied))
    ours, theirs = adapter_of(unbroken).tensors(), adapter_of(resumed).tensors()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(CheckpointError, match=r"in full has .* use the model that it was trained with"):
        learner(tied).resume(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="trained beside its base in nf4, and lora_base is 'full'"):
        learner(tied, LoraSpec(adapter=str(tmp_path / "saved")))
    onward = learner(tied, LoraSpec(adapter=str(tmp_path / "saved"), base="nf4"))
    for old, ref in zip(*scored(onward, tied)[:2], strict=True):
        np.testing.assert_array_equal(old, ref)


def test_an_export_is_what_engines_were_given_also_of_the_adapter_alone(
    folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    own = trained(folder, NF4)
    own.checkpoint(str(tmp_path / "saved"), {})
    export(find_checkpoint(tmp_path / "saved"), tmp_path / "merged")
    monkeypatch.setattr(
        sys, "argv", ["export", *map(str, (tmp_path / "saved", "--to", tmp_path / "adapter")), "--adapter"]
    )
    assert main() == 0
    assert "in nf4" in capsys.readouterr().out
    export(find_checkpoint(tmp_path / "adapter"), tmp_path / "again")
    served = dict(wire_tensors(own.model, torch.float32))
    for merged in (tmp_path / "merged", tmp_path / "again"):
        assert all(torch.equal(served[name], tensor) for name, tensor in load(merged).named_parameters())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(sys, "argv", ["export", *map(str, (tmp_path / "saved", "--to", tmp_path / "out"))])
    assert main() == REFUSED
    assert "pip install --no-deps bitsandbytes==" in capsys.readouterr().err
