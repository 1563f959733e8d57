"""What vLLM tells of a mixture's routing, on a GPU: the CPU's engine has no model runner that does.

Written without a GPU at hand: until these tests have passed on one, the engine's side is unproven.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.policy import SamplingParams
from rl.batch import make_batch
from rl.model import PolicyModel
from rollout.engine import EngineSpec, VllmEngine
from rollout.trajectory import Turn
from tests.tiny import load, make_group, make_tiny_mixture

pytestmark = [pytest.mark.gpu, pytest.mark.asyncio, pytest.mark.timeout(900)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM tells its routing on GPUs only")
async def test_two_turns_tell_of_every_token_once_and_replay_narrows_the_gap(tmp_path: Path):
    folder = make_tiny_mixture(tmp_path / "mixture")
    spec = EngineSpec(
        name="engine",
        model=str(folder),
        device="cuda",
        dtype="bfloat16",
        context_length=128,
        max_num_seqs=8,
        weight_transfer_backend="whetstone_shm",
        num_gpus=0.5,
        returns_experts=True,
    )
    engine = VllmEngine(spec)
    await engine.start()
    try:
        prompt, reply = [3 + i % 90 for i in range(50)], [5, 6, 7]
        for _ in range(2):  # the second time most of the prompt comes from the prefix cache
            first = await engine.complete(prompt, SamplingParams(max_tokens=20, seed=1))
            known = len(prompt) + 19
            second = await engine.complete(
                [*prompt, *first.token_ids, *reply], SamplingParams(max_tokens=20, seed=2, num_routed=known)
            )
            assert first.routed_experts is not None
            assert second.routed_experts is not None
            assert first.routed_experts.shape == (50 + 19, 2, 2)
            assert second.routed_experts.shape == (1 + 3 + 19, 2, 2)
    finally:
        await engine.stop()
    turns = (
        Turn(parent=None, context_ids=tuple(prompt), completion=first),
        Turn(parent=0, context_ids=tuple(reply), completion=second),
    )
    group = make_group(0, [([[1], [2]], 1.0)])
    layout = make_batch(
        [replace(group, trajectories=(replace(group.trajectories[0], turns=turns),))]
    ).padded()
    assert layout.routed_experts is not None
    assert (layout.routed_experts[0, :-1] >= 0).all()
    with torch.no_grad():
        free, replayed = (
            (PolicyModel(load(folder), temperature=1.0, replay_routing=on)(layout).logprobs).numpy()
            for on in (False, True)
        )
    rollout = layout.rollout_logprobs.numpy()
    assert np.abs(replayed - rollout).max() <= np.abs(free - rollout).max() + 1e-3
