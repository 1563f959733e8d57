"""The drill of the bench's gate leaks in every layout, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.benching.leaking import leaking
from tests.rl.test_learner import learner, multi_turn_batch
from tests.tiny import make_tiny_model


@pytest.mark.parametrize("layout", ["trie", "packed", "padded"])
def test_a_leak_moves_log_probs_far_beyond_the_gate(tmp_path: Path, layout: str) -> None:
    folder = make_tiny_model(tmp_path / "model", tied=True)
    own, batch = learner(folder, layout=layout), multi_turn_batch(folder)

    def scored() -> np.ndarray:
        arrays = own.score(batch, frozenset({"old_logprobs"})).old_logprobs
        assert arrays is not None
        return np.concatenate(arrays)

    sound = scored()
    with leaking():
        assert np.abs(scored() - sound).max() > 1e-4  # the gate allows 1e-5
    np.testing.assert_array_equal(scored(), sound)
