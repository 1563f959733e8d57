"""LoRA: the adapter learns, the base stays to the bit, and what engines get is what the learner computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch
from rl.checkpoint import CheckpointError
from rl.config import Config
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.lora import fit_problems
from rl.lora_layers import is_of_adapter, whole_tensors
from rl.lora_settings import LoraSpec
from rl.weights import sketch_weights, wire_tensors
from rollout.weight_sketch import compare_sketches
from tests.rl.test_learner import multi_turn_batch
from tests.tiny import load, make_tiny_mixture, make_tiny_model, reference_logprobs

FRESH = LoraSpec(rank=4, alpha=8.0)
IDS = [5, 9, 33, 70, 21, 12, 64, 8]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tied"), tied=True)


def learner(folder: Path, lora: LoraSpec | None = FRESH, algorithm: str = "grpo", **fields: Any) -> Learner:
    given = {"learning_rate": 1e-2, "num_updates": 10} | fields
    return Learner(LearnerSpec(model=str(folder), algorithm=get_algorithm(algorithm), lora=lora, **given))


def ready(own: Learner, folder: Path) -> TrainBatch:
    row = own.spec.algorithm
    return row.assign_advantages(own.score(multi_turn_batch(folder), row.needs))


def trained(folder: Path, lora: LoraSpec = FRESH, num_updates: int = 3) -> Learner:
    own = learner(folder, lora)
    batch = ready(own, folder)
    for _ in range(num_updates):
        own.update(batch)
    return own


def adapter_of(own: Learner) -> Any:
    assert own.adapter is not None
    return own.adapter


def scored(own: Learner, folder: Path) -> tuple[Any, Any, TrainBatch]:
    """Old and reference log-probs of the batch, and the batch."""
    batch = own.score(multi_turn_batch(folder), own.spec.algorithm.needs)
    return batch.old_logprobs, batch.ref_logprobs, batch


def base_bytes(own: Learner) -> dict[str, bytes]:
    return {name: t.clone().numpy().tobytes() for name, t in whole_tensors(own.model, merged=False)}


def test_the_adapter_alone_learns_in_float32_and_the_base_stays_to_the_bit(folder: Path) -> None:
    own = learner(folder)
    before, start = base_bytes(own), [t.clone() for t in adapter_of(own).parameters()]
    names = [name for name, p in own.model.named_parameters() if p.requires_grad]
    assert names
    assert all(map(is_of_adapter, names))
    assert {p.dtype for p in own.model.parameters() if p.requires_grad} == {torch.float32}
    optimized = {id(p) for group in own.optimizer.adamw.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in own.model.parameters() if p.requires_grad}
    batch = ready(own, folder)
    for version in range(3):
        own.update(batch)
        own.publish(version)
        own.perturb(1e-2, seed=version)
        own.restore()
    own.close()
    assert base_bytes(own) == before
    assert any(not torch.equal(a, b) for a, b in zip(start, adapter_of(own).parameters(), strict=True))
    assert before.keys() == dict(load(folder).named_parameters()).keys()


def test_the_reference_is_the_starting_policy_without_a_second_model(folder: Path) -> None:
    own = learner(folder)
    old, ref, batch = scored(own, folder)
    for of_policy, of_reference in zip(old, ref, strict=True):
        np.testing.assert_array_equal(of_policy, of_reference)
    own.update(own.spec.algorithm.assign_advantages(batch))
    old, ref, _ = scored(own, folder)
    _, loaded, _ = scored(learner(folder, None), folder)
    for of_policy, of_reference, of_loaded in zip(old, ref, loaded, strict=True):
        np.testing.assert_array_equal(of_reference, of_loaded)
        assert np.abs(of_reference - of_policy).max() > 1e-3
    # Training goes on where it was: scoring with the reference leaves the adapter on and trainable.
    assert any(p.requires_grad for p in own.model.parameters())


def test_with_a_starting_adapter_the_reference_is_the_model_with_it(tied: Path, tmp_path: Path) -> None:
    first = trained(tied)
    first.checkpoint(str(tmp_path / "adapter"), {})
    own = learner(tied, LoraSpec(adapter=str(tmp_path / "adapter")))
    old, start, batch = scored(own, tied)
    for of_policy, of_reference, of_first in zip(old, start, scored(first, tied)[0], strict=True):
        np.testing.assert_array_equal(of_policy, of_reference)
        np.testing.assert_array_equal(of_policy, of_first)
    before = base_bytes(own)
    own.update(own.spec.algorithm.assign_advantages(batch))
    old, ref, _ = scored(own, tied)
    for of_policy, of_reference, at_start in zip(old, ref, start, strict=True):
        np.testing.assert_array_equal(of_reference, at_start)
        assert np.abs(of_reference - of_policy).max() > 1e-3
    assert base_bytes(own) == before


def test_merged_wire_tensors_are_a_model_that_answers_as_the_learner_does(folder: Path) -> None:
    own = trained(folder)
    wire = dict(wire_tensors(own.model, torch.float32))
    model = load(folder)
    assert wire.keys() == dict(model.named_parameters()).keys()
    model.load_state_dict(wire, strict=False)
    model.tie_weights()
    (answer,) = own.score_sequences([IDS])
    np.testing.assert_allclose(answer, reference_logprobs(model, IDS), atol=2e-6)
    assert np.abs(answer - reference_logprobs(load(folder), IDS)).max() > 1e-2
    # W + alpha / rank * B @ A, written down from the file that peft saves.
    name = "model.layers.1.mlp.down_proj"
    tensors = adapter_of(own).tensors()
    down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = load(folder).get_parameter(f"{name}.weight") + 8.0 / 4 * up @ down
    torch.testing.assert_close(wire[f"{name}.weight"], expected, rtol=0, atol=1e-6)


def test_an_engine_that_serves_the_base_differs_in_the_sketches(tied: Path) -> None:
    own = trained(tied)
    served = sketch_weights(own.model, torch.float32, 3, merged=False)
    with pytest.raises(RuntimeError, match=r"q_proj.weight differs in 128 of 128 rows"):
        compare_sketches(served, own.sketch_weights(3), dtype="float32", who="engine 0")


def test_a_checkpoint_is_an_adapter_that_peft_loads_to_equal_logprobs(folder: Path, tmp_path: Path) -> None:
    own = trained(folder)
    own.checkpoint(str(tmp_path / "saved"), {})
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    reloaded: Any = PeftModel.from_pretrained(load(folder), str(tmp_path / "saved")).eval()
    np.testing.assert_array_equal(own.score_sequences([IDS])[0], reference_logprobs(reloaded, IDS))
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == (str(folder), 4)


def test_a_run_goes_on_from_its_adapter_bit_for_bit(tied: Path, tmp_path: Path) -> None:
    unbroken = trained(tied)
    unbroken.checkpoint(str(tmp_path / "saved"), {})
    resumed = learner(tied, seed=9)
    resumed.resume(str(tmp_path / "saved"))
    for own in (unbroken, resumed):
        own.update(ready(own, tied))
    ours, theirs = adapter_of(unbroken).tensors(), adapter_of(resumed).tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_checkpoints_of_another_kind_are_refused_with_what_differs(tied: Path, tmp_path: Path) -> None:
    learner(tied).checkpoint(str(tmp_path / "rank4"), {})
    learner(tied, None).checkpoint(str(tmp_path / "whole"), {})
    with pytest.raises(CheckpointError, match=r"lora_A.weight has shape \[4, 128\], ours \[8, 128\]"):
        learner(tied, LoraSpec(rank=8, alpha=16)).resume(str(tmp_path / "rank4"))
    with pytest.raises(CheckpointError, match="trained all weights"):
        learner(tied).resume(str(tmp_path / "whole"))
    deeper = make_tiny_model(tmp_path / "deeper", tied=True, num_layers=3)
    with pytest.raises(
        CheckpointError, match=r"another architecture .*only in this run's model: model.layers.2.*more"
    ):
        learner(deeper, None).resume(str(tmp_path / "whole"))
    other = make_tiny_model(tmp_path / "other", tied=True, seed=1)
    with pytest.raises(CheckpointError, match="use the model that it was trained with"):
        learner(other).resume(str(tmp_path / "rank4"))


WITH_TOKENS = replace(FRESH, targets=("all-linear", "embed_tokens", "lm_head"))


def test_an_adapter_of_embedding_and_head_is_scored_merged_and_saved_alike(
    folder: Path, tmp_path: Path
) -> None:
    is_tied = load(folder).config.tie_word_embeddings
    own = trained(folder, replace(WITH_TOKENS, targets=WITH_TOKENS.targets[: 2 if is_tied else 3]))
    batch = own.score(multi_turn_batch(folder), frozenset({"old_logprobs"}))
    model = load(folder)
    model.load_state_dict(dict(wire_tensors(own.model, torch.float32)), strict=False)
    model.tie_weights()
    assert batch.old_logprobs is not None
    for sample, old in zip(batch.samples, batch.old_logprobs, strict=True):
        expected = np.concatenate([[0.0], reference_logprobs(model, sample.token_ids.tolist())])
        np.testing.assert_allclose(old[sample.loss_mask], expected[sample.loss_mask], atol=1e-5)
    (answer,) = own.score_sequences([IDS])
    np.testing.assert_allclose(answer, reference_logprobs(model, IDS), atol=1e-5)
    own.checkpoint(str(tmp_path / "saved"), {})
    reloaded: Any = PeftModel.from_pretrained(load(folder), str(tmp_path / "saved")).eval()
    np.testing.assert_array_equal(answer, reference_logprobs(reloaded, IDS))
    onward = learner(folder, LoraSpec(adapter=str(tmp_path / "saved")))
    for old, ref in zip(*scored(onward, folder)[:2], strict=True):
        np.testing.assert_array_equal(old, ref)
    for resumed in (own, learner(folder, own.spec.lora)):
        resumed.resume(str(tmp_path / "saved"))
        resumed.update(ready(resumed, folder))
        (after,) = resumed.score_sequences([IDS])
        assert np.abs(after - answer).max() > 1e-4
        np.testing.assert_array_equal(after, own.score_sequences([IDS])[0])


def test_the_adapter_of_a_tied_embedding_gets_the_gradient_of_both_its_places(tied: Path) -> None:
    own = learner(tied, replace(WITH_TOKENS, targets=("embed_tokens",)))
    table = own.model.model.embed_tokens
    down, up = table.lora_embedding_A["default"], table.lora_embedding_B["default"]  # (r, V), (H, r)
    with torch.no_grad():
        down.normal_(std=0.1)
        up.normal_(std=0.1)
    plain = load(tied)
    plain.load_state_dict(dict(wire_tensors(own.model, torch.float32)), strict=False)
    ids = torch.tensor([IDS])
    for model in (own.model, plain):
        model(input_ids=ids, labels=ids).loss.backward()
    whole = plain.get_parameter("model.embed_tokens.weight").grad  # (V, H), lookups and head
    assert whole is not None
    assert down.grad is not None
    # W = W0 + alpha / rank * (B A)^T with alpha / rank = 2: dA = 2 B^T dW^T, dB = 2 dW^T A^T.
    torch.testing.assert_close(down.grad, 2 * up.T @ whole.T, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(up.grad, 2 * whole.T @ down.T, rtol=1e-3, atol=1e-6)
    assert own.model.lm_head.lora_A["default"].weight.grad is None


def test_only_the_named_targets_get_an_adapter(tied: Path) -> None:
    own = learner(tied, replace(FRESH, targets=("q_proj", "layers.0.mlp.up_proj")))
    adapted = {
        name.partition(".lora_")[0].removeprefix("base_model.model.") for name in adapter_of(own).tensors()
    }
    queries = {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}
    assert adapted == queries | {"model.layers.0.mlp.up_proj"}


def test_a_mixture_learns_by_an_adapter_too(tmp_path: Path) -> None:
    mixture = make_tiny_mixture(tmp_path)
    own = learner(mixture, algorithm="dr_grpo")
    before = base_bytes(own)
    names = set(dict(wire_tensors(own.model, torch.float32)))
    assert names == set(dict(wire_tensors(AutoModelForCausalLM.from_pretrained(mixture), torch.float32)))
    own.update(ready(own, mixture))
    assert base_bytes(own) == before
    config = Config(model=str(mixture), lora_rank=4, lora_sync="adapter")
    assert "mixture of experts" in "\n".join(fit_problems(config))
