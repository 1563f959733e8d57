"""An adapter on several ranks: the updates of one, the same bytes served and saved, the base to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rl.batch import TrainBatch
from rl.checkpoint import verify
from rl.config import Config
from rl.defaults import resolve
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.lora import fit_problems, with_targets
from rl.lora_layers import is_of_adapter
from rl.lora_settings import LoraSpec
from rl.model_lora import base_crc32
from rl.numerics import add_metrics, metric_values
from rl.splitting import rows_by_rank, split_batch
from rollout.weight_sketch import compare_sketches
from tests.rl.backends.test_sharded_checkpoints import EXTRA, FSDP, PLAIN, assert_same_losses, run
from tests.rl.backends.test_sharded_updates import (
    GRADIENT,
    WEIGHTS,
    distance,
    minibatches_of,
    on_ranks,
)
from tests.rl.backends.working import checkpointed, resumed, run_ranks, tiny_spec, uneven_batch, updated
from tests.rl.test_lora_settings import LAPTOP
from tests.tiny import make_tiny_model

FRESH = LoraSpec(rank=4, alpha=8.0)
EVERYWHERE = replace(FRESH, targets=("all-linear", "embed_tokens", "lm_head"))
CANARIES = [[5, 6, 7, 8], [9, 10, 11]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def begun(folder: Path, path: Path, lora: LoraSpec = FRESH) -> LearnerSpec:
    """A learner that goes on with an adapter which adds something: of a fresh one half is 0."""
    spec = tiny_spec(folder, "grpo", lora=lora, learning_rate=1e-2)
    own = Learner(spec)
    batch = minibatches_of(spec, folder)[0]
    for _ in range(3):
        own.update(batch)
    own.checkpoint(str(path), {})
    return replace(spec, learning_rate=1e-3, lora=LoraSpec(adapter=str(path)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("targets", ["linear", pytest.param("everywhere", marks=EXTRA)])
def test_ranks_make_the_updates_of_one(tmp_path: Path, targets: str) -> None:
    folder = make_tiny_model(tmp_path / "model", tied=targets == "linear")
    spec = begun(folder, tmp_path / "begun", FRESH if targets == "linear" else EVERYWHERE)
    spec = replace(spec, max_grad_norm=0.02)  # the first gradient is clipped
    minibatches = minibatches_of(spec, folder)
    alone = updated(spec, minibatches)
    assert all(map(is_of_adapter, alone.first))
    assert len(alone.first) == (28 if targets == "linear" else 32)
    for rank in on_ranks(replace(spec, backend="fsdp", num_ranks=2), minibatches):
        assert distance(rank.first, alone.first) <= GRADIENT
        assert distance(rank.weights, alone.weights) <= WEIGHTS
        for name, weights in alone.weights.items():
            assert is_of_adapter(name) or np.array_equal(rank.weights[name], weights), name
    norms = [metric_values(sums)["optim/grad_norm"] for sums in alone.sums]
    assert norms[0] > 0.02


def both_ways(
    spec: LearnerSpec, minibatch: TrainBatch, batch: TrainBatch, needs: frozenset[str]
) -> list[dict[str, Any]]:
    """What a rank says of an adapter that is served merged, and of one that is served by itself."""
    assert spec.lora is not None
    return [
        said(replace(spec, lora=replace(spec.lora, serves_adapter=alone)), minibatch, batch, needs)
        for alone in (False, True)
    ]


def said(
    spec: LearnerSpec, minibatch: TrainBatch, batch: TrainBatch, needs: frozenset[str]
) -> dict[str, Any]:
    learner = Learner(spec)
    assert learner.adapter is not None
    before = learner.score_base_sequences(CANARIES)  # the first forward of all, with the adapter away
    learner.perturb(1e-2, seed=1)
    moved = learner.score_sequences(CANARIES)
    learner.restore()
    manifest = learner.publish(3)
    folder = Path(manifest.path) if manifest and learner.served_adapter else None
    facts = {
        "crcs": None if manifest is None else {t.name: t.crc32 for t in manifest.tensors},
        "files": load_file(folder / "adapter_model.safetensors") if folder else {},
        "sketches": learner.sketch_weights(7),
        "canaries": [*before, *moved, *learner.score_sequences(CANARIES)],
        "facts": {name: value for name, value in learner.facts().items() if name != "held_parameters"},
    }
    learner.update(minibatch)
    scored = learner.score(batch, needs)
    after = learner.score_base_sequences(CANARIES)
    learner.close()
    return facts | {
        "scored": scored,
        "base stays": base_crc32(learner.model) == learner.adapter.base_crc32
        and all(np.array_equal(x, y) for x, y in zip(before, after, strict=True)),
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_ranks_serve_is_what_one_serves(folder: Path, tmp_path: Path) -> None:
    spec = begun(folder, tmp_path / "begun")
    batch, needs = uneven_batch(folder), spec.algorithm.needs
    minibatch = minibatches_of(spec, folder)[0]
    alone = both_ways(spec, minibatch, batch, needs)
    rows = rows_by_rank(batch.samples, 2)
    sharded = replace(spec, backend="fsdp", num_ranks=2)
    ranks = run_ranks(both_ways, sharded, split_batch(minibatch, 2), batch.split(rows), [needs, needs])
    for way, expected in enumerate(alone):
        assert_serves_the_same([rank[way] for rank in ranks], expected, rows)
    assert alone[0]["files"] == {}
    assert len(alone[1]["files"]) == 28


def assert_serves_the_same(
    ranks: Sequence[dict[str, Any]], alone: dict[str, Any], rows: Sequence[Sequence[int]]
) -> None:
    assert [told["base stays"] for told in (alone, *ranks)] == [True] * 3
    assert ranks[0]["crcs"] == alone["crcs"]  # every bit of every tensor
    assert ranks[1]["crcs"] is None
    assert ranks[0]["files"].keys() == alone["files"].keys()
    assert all(np.array_equal(x, alone["files"][name]) for name, x in ranks[0]["files"].items())
    compare_sketches(ranks[0]["sketches"], alone["sketches"], dtype="float32", who="rank 0")
    for told, own in zip(ranks, rows, strict=True):
        assert told["facts"] == alone["facts"]
        for found, wanted in zip(told["canaries"], alone["canaries"], strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-6)
        for name, atol in (("old_logprobs", 1e-5), ("ref_logprobs", 2e-6)):
            for row, found in zip(own, getattr(told["scored"], name), strict=True):
                np.testing.assert_allclose(found, getattr(alone["scored"], name)[row], atol=atol)
    gap = [np.abs(old - ref).max() for old, ref in zip(*logprobs(alone["scored"]), strict=True)]
    assert min(gap) > 1e-3  # the reference is not what the update made of the policy


def logprobs(batch: TrainBatch) -> tuple[Any, Any]:
    return batch.old_logprobs, batch.ref_logprobs


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("saving", "going_on"),
    [
        pytest.param(FSDP, PLAIN, id="fsdp-plain", marks=pytest.mark.slow),
        pytest.param(PLAIN, FSDP, id="plain-fsdp", marks=pytest.mark.slow),
        pytest.param(FSDP, ("fsdp", 0, 3), id="fsdp-3-ranks", marks=EXTRA),
    ],
)
def test_a_run_goes_on_with_the_same_losses(folder: Path, tmp_path: Path, saving: Any, going_on: Any) -> None:
    spec = tiny_spec(folder, lora=FRESH)
    minibatches = minibatches_of(spec, folder)[:4]
    unbroken = updated(spec, [*minibatches, minibatches[-1]])
    path = tmp_path / "step_000004"
    saved = run(checkpointed, spec, saving, minibatches, str(path))
    verify(path)
    then = run(resumed, spec, going_on, minibatches[-1], str(path))
    for sums in (add_metrics(rank[-1][0] for rank in part) for part in (saved, then)):
        assert_same_losses(sums, unbroken.sums[-1])
    in_file = load_file(path / "adapter_model.safetensors")
    assert len(in_file) == 28
    restored = then[0][0]
    for name, weights in in_file.items():
        inside = name.removesuffix(".weight").removeprefix("base_model.model.")
        np.testing.assert_array_equal(
            restored[f"policy.model.{inside}.default.weight"], weights, err_msg=name
        )


def test_an_adapter_of_a_tied_embedding_is_refused_on_ranks(folder: Path, tmp_path: Path) -> None:
    """It is two parameters over one memory, which ranks would split as two that drift apart."""

    def config(**fields: Any) -> Config:
        given = {"model": str(folder), "backend": "fsdp", "learner_ranks": 2} | fields
        return resolve(Config(**given), LAPTOP)

    assert with_targets(config(lora_rank=4)).lora_targets == "all-linear"
    assert not list(fit_problems(config(lora_rank=4)))
    named = config(lora_rank=4, lora_targets="all-linear,embed_tokens")
    (problem,) = fit_problems(named)
    assert "lora_targets with backend = 'fsdp': it adapts the token embedding, which is tied" in problem
    assert "use backend plain, or lora_targets all-linear" in problem
    assert not list(fit_problems(replace(named, backend="plain", learner_ranks=1)))
    spec = tiny_spec(folder, lora=named.lora)
    Learner(spec).checkpoint(str(tmp_path / "saved"), {})
    (problem,) = fit_problems(config(lora_adapter=str(tmp_path / "saved")))
    assert "or another adapter" in problem
    for lora in (named.lora, LoraSpec(adapter=str(tmp_path / "saved"))):
        with pytest.raises(ValueError, match="tied to the head"):
            Learner(replace(spec, lora=lora, backend="fsdp", num_ranks=2))
    untied = make_tiny_model(tmp_path / "untied", tied=False)
    free = with_targets(config(model=str(untied), lora_rank=4))
    assert free.lora_targets == "all-linear,embed_tokens,lm_head"
    assert not list(fit_problems(free))
