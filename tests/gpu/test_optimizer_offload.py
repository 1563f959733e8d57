"""AdamW's moments out of a real GPU: its memory, and the same numbers. Written without a GPU at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from rl.learner import Learner
from rl.optimizer_offload import MOMENTS, OffloadedAdamW
from tests.rl.backends.test_sharded_updates import minibatches_of
from tests.rl.backends.working import tiny_spec, whole_weights
from tests.tiny import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="memory of a GPU"),
]

SIZE = 1 << 20


def stepped(kind: type[AdamW]) -> tuple[list[np.ndarray], int]:
    """Eight parameters and their moments after three steps, and the bytes that stay on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    parameters = [nn.Parameter(torch.randn(SIZE, generator=generator, device="cuda")) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    optimizer = kind(parameters, lr=1e-3, weight_decay=0.1)
    for _ in range(3):
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.normal_(generator=generator)
        optimizer.step()
    held = torch.cuda.memory_allocated() - before
    if kind is OffloadedAdamW:
        assert all(optimizer.state[p][name].is_pinned() for p in parameters for name in MOMENTS)
    moments = [optimizer.state[p][name].cpu().numpy() for p in parameters for name in MOMENTS]
    return [p.detach().cpu().numpy() for p in parameters] + moments, held


def test_a_step_is_adamws_and_nothing_stays_on_the_gpu():
    wanted, usual = stepped(AdamW)
    found, held = stepped(OffloadedAdamW)
    assert usual >= 8 * SIZE * 8
    assert held < SIZE
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_learner_resumes_without_offload_what_it_saved_with(tmp_path: Path):
    folder = make_tiny_model(tmp_path / "model", tied=True)
    spec = tiny_spec(folder)
    minibatches = minibatches_of(spec, folder)[:3]
    one = Learner(tiny_spec(folder, device="cuda", optimizer_offload="cpu"))
    for minibatch in minibatches:
        one.update(minibatch)
    one.checkpoint(str(tmp_path / "step_000003"), {})
    other = Learner(tiny_spec(folder, device="cuda"))
    other.resume(str(tmp_path / "step_000003"))
    for own in (one, other):
        own.update(minibatches[0])
    found = whole_weights(other)
    for name, x in whole_weights(one).items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-6, err_msg=name)
