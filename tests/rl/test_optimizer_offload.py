"""Moments in main memory: AdamW's numbers to the bit, and checkpoints that know nothing of where they lay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from recipes.placement import make_learner_spec
from rl.config import Config
from rl.defaults import resolve
from rl.learner import Learner
from rl.machine import Machine
from rl.optimizer_offload import MOMENTS, OffloadedAdamW, placed
from tests.rl.backends.test_sharded_updates import minibatches_of
from tests.rl.backends.working import checkpointed, resumed, tiny_spec, updated, whole_weights
from tests.tiny import make_tiny_model

SHAPES = [(7, 5), (3,), (), (2, 3, 4), (0,)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def stepped(kind: type[AdamW]) -> list[np.ndarray]:
    """Parameters and moments after six steps, in two groups; one parameter has a gradient in some only."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = kind(
        [{"params": parameters[:2], "lr": 1e-2}, {"params": parameters[2:], "lr": 3e-3, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    for number in range(6):
        for index, parameter in enumerate(parameters):
            grad = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if index == 1 and number in (0, 3) else grad
        optimizer.step()
    states = [optimizer.state[parameter] for parameter in parameters]
    return [
        *(parameter.detach().numpy() for parameter in parameters),
        *(state[name].numpy() for state in states for name in ("step", *MOMENTS)),
    ]


def test_a_step_is_adamws_to_the_bit():
    for found, wanted in zip(stepped(OffloadedAdamW), stepped(AdamW), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_what_is_placed_is_a_copy_in_main_memory():
    parameter = nn.Parameter(torch.zeros(3))
    value = torch.ones(3)
    kept = placed(OffloadedAdamW([parameter]), parameter, value)
    value.zero_()
    assert kept.device.type == "cpu"
    assert kept.tolist() == [1, 1, 1]


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="takes no closure"):
        OffloadedAdamW([nn.Parameter(torch.zeros(1))]).step(lambda: 0.0)  # type: ignore[arg-type]


def test_a_learner_makes_the_same_updates(folder: Path):
    spec = tiny_spec(folder, max_grad_norm=0.02, weight_decay=0.01)
    minibatches = minibatches_of(spec, folder)
    offloaded = replace(spec, optimizer_offload="cpu")
    assert isinstance(Learner(offloaded).optimizer.adamw, OffloadedAdamW)
    found, wanted = updated(offloaded, minibatches), updated(spec, minibatches)
    for these, those in ((found.weights, wanted.weights), (found.last, wanted.last)):
        for name, x in those.items():
            np.testing.assert_array_equal(these[name], x, err_msg=name)


@pytest.mark.parametrize(("saving", "going_on"), [("cpu", "none"), ("none", "cpu"), ("cpu", "cpu")])
def test_a_checkpoint_resumes_with_and_without(folder: Path, tmp_path: Path, saving: str, going_on: str):
    spec = tiny_spec(folder)
    minibatches = minibatches_of(spec, folder)[:3]
    path = str(tmp_path / "step_000003")
    checkpointed(replace(spec, optimizer_offload=saving), minibatches, path)
    again = replace(spec, optimizer_offload=going_on)
    resumed(again, minibatches[-1], path)
    one, other = Learner(spec), Learner(again)
    for minibatch in [*minibatches, minibatches[-1], minibatches[0]]:
        one.update(minibatch)
    other.resume(path)
    for minibatch in (minibatches[-1], minibatches[0]):
        other.update(minibatch)
    found = whole_weights(other)
    for name, x in whole_weights(one).items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_the_setting_reaches_the_learner():
    machine = Machine(host="here", cores=4, memory_bytes=2**34, gpus=("GPU", "GPU"))
    config = resolve(Config(optimizer_offload="cpu"), machine)
    spec = make_learner_spec(config, config.make_algorithm(), run_name="run", incidents="")
    assert spec.optimizer_offload == "cpu"
