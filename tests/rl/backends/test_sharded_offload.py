"""Several ranks with their optimizer's state in main memory make the updates of ranks without."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rl.algorithms import get_algorithm
from rl.learner_spec import LearnerSpec
from rl.numerics import add_metrics, metric_values
from tests.rl.backends.test_sharded_checkpoints import FSDP, PLAIN, ZERO_2, ZERO_3, assert_same_losses, run
from tests.rl.backends.test_sharded_updates import GRADIENT, WEIGHTS, distance, minibatches_of, on_ranks
from tests.rl.backends.working import checkpointed, poisoned, resumed, tiny_spec, updated
from tests.tiny import load, make_tiny_model

EXTRA = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.mark.parametrize(
    ("backend", "stage"),
    [
        pytest.param("fsdp", 0, id="fsdp", marks=pytest.mark.slow),
        pytest.param("deepspeed", 1, id="zero-1", marks=EXTRA),
        pytest.param("deepspeed", 2, id="zero-2", marks=EXTRA),
        pytest.param("deepspeed", 3, id="zero-3", marks=EXTRA),
    ],
)
def test_ranks_with_offload_make_the_updates_of_one(folder: Path, backend: str, stage: int) -> None:
    spec = tiny_spec(folder, max_grad_norm=0.02)  # the first gradient is clipped
    minibatches = minibatches_of(spec, folder)
    alone = updated(spec, minibatches)
    spread = replace(spec, backend=backend, zero_stage=stage, num_ranks=2, optimizer_offload="cpu")
    ranks = on_ranks(spread, minibatches)
    for rank in ranks:
        assert distance(rank.first, alone.first) <= GRADIENT
        assert distance(rank.weights, alone.weights) <= WEIGHTS
        assert distance(rank.last, alone.last) <= WEIGHTS  # the last update trains nothing
    for *parts, expected in zip(*(rank.sums for rank in ranks), alone.sums, strict=True):
        found = metric_values(add_metrics(parts))
        wanted = metric_values(expected)
        assert found["optim/grad_norm"] == pytest.approx(wanted["optim/grad_norm"], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("saving", "going_on"),
    [
        pytest.param(FSDP, PLAIN, id="fsdp-plain", marks=pytest.mark.slow),
        pytest.param(PLAIN, FSDP, id="plain-fsdp", marks=pytest.mark.slow),
        pytest.param(ZERO_3, FSDP, id="zero3-fsdp", marks=EXTRA),
        pytest.param(ZERO_2, PLAIN, id="zero2-plain", marks=EXTRA),
        pytest.param(PLAIN, ZERO_2, id="plain-zero2", marks=EXTRA),
        pytest.param(PLAIN, ZERO_3, id="plain-zero3", marks=EXTRA),
    ],
)
def test_a_checkpoint_goes_on_with_and_without(
    folder: Path, tmp_path: Path, saving: tuple[str, int, int], going_on: tuple[str, int, int]
) -> None:
    """The sharded side offloads; where both are, the one that saves."""
    spec = tiny_spec(folder)
    minibatches = minibatches_of(spec, folder)[:4]
    unbroken = updated(spec, [*minibatches, minibatches[-1]])
    offloaded = replace(spec, optimizer_offload="cpu")
    path = str(tmp_path / "step_000004")
    saves, goes_on = (spec, offloaded) if saving == PLAIN else (offloaded, spec)
    run(checkpointed, saves, saving, minibatches, path)
    then = run(resumed, goes_on, going_on, minibatches[-1], path)
    assert_same_losses(add_metrics(rank[-1][0] for rank in then), unbroken.sums[-1])
    in_file = {f"policy.model.{name}": p.detach().numpy() for name, p in load(Path(path)).named_parameters()}
    for name, weights in in_file.items():
        np.testing.assert_array_equal(then[0][0][name], weights, err_msg=name)


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("backend", "stage"), [("fsdp", 0), ("deepspeed", 3), ("deepspeed", 1)])
def test_a_gradient_that_is_not_finite_moves_no_offloaded_state(
    folder: Path, backend: str, stage: int
) -> None:
    spec = tiny_spec(folder, max_grad_norm=0.02)
    good = minibatches_of(spec, folder)[0]
    spec = replace(spec, backend=backend, zero_stage=stage, num_ranks=2, optimizer_offload="cpu")
    ranks = on_ranks(spec, [good, good], poisoned)
    undisturbed = on_ranks(spec, [good, good])
    for rank in ranks:
        assert metric_values(rank.sums[1])["optim/skipped_updates"] == 1.0
        assert distance(rank.last, undisturbed[0].last) == 0.0
        assert distance(rank.weights, undisturbed[0].weights) == 0.0


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_told_to_offload_and_to_keep_torchs_adamw(stage: int) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from rl.backends.zero import training_config, zero_config

    spec = LearnerSpec(
        model="",
        algorithm=get_algorithm("grpo"),
        learning_rate=1e-3,
        num_updates=1,
        device="cuda",
        backend="deepspeed",
        zero_stage=stage,
        optimizer_offload="cpu",
    )
    config = training_config(spec)
    assert config["zero_force_ds_cpu_optimizer"] is False
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    assert zero.offload_optimizer is not None
    assert (zero.offload_optimizer.device, zero.offload_optimizer.pin_memory) == ("cpu", True)
    assert zero.offload_param is None
    assert training_config(replace(spec, optimizer_offload="none")) == zero_config(spec)
    assert "offload_optimizer" not in zero_config(spec)["zero_optimization"]
