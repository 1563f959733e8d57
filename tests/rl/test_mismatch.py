"""The gap between engine and learner, token by token: statistics, turns and positions, what is advised."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rl.batch import make_batch
from rl.mismatch import GapSummary, by, recommend, summarize, token_gaps
from tests.tiny import make_group


def test_turns_and_positions_of_every_sampled_token():
    batch = make_batch([make_group(0, [([[5, 6], [7, 8, 9], [10], [11]], 1.0), ([[5], [12]], 0.0)])])
    old = tuple(
        np.where(s.loss_mask, np.arange(len(s.token_ids), dtype=np.float32), np.nan) for s in batch.samples
    )
    gaps = token_gaps(replace(batch, old_logprobs=old))  # the engine's are 0
    # 5 6 | 7 8 9 | 10 | 11 and 5 | 12
    assert gaps.difference.tolist() == [2.0, 3.0, 4.0, 6.0, 1.0]
    assert gaps.turn.tolist() == [0, 0, 0, 1, 0]
    assert gaps.position.tolist() == [0, 1, 2, 0, 0]
    assert {turn: s.num_tokens for turn, s in by(gaps.turn, gaps.difference).items()} == {"0": 4, "1": 1}
    ranges = by(gaps.position, gaps.difference, (0, 2, 8))
    assert {name: s.num_tokens for name, s in ranges.items()} == {"0-1": 4, "2-7": 1}
    with pytest.raises(ValueError, match="score it first"):
        token_gaps(batch)


def test_the_statistics_are_those_of_their_formulas():
    s = summarize(np.array([0.02, -0.005, 0.0, 0.0], np.float32))
    assert (s.num_tokens, s.beyond) == (4, 0.25)
    assert s.mean == pytest.approx(0.00375)  # (0.02 - 0.005) / 4
    assert (s.abs_mean, s.abs_max, s.k1) == pytest.approx((0.00625, 0.02, -0.00375))
    k3 = sum(math.exp(d) - 1 - d for d in (0.02, -0.005)) / 4
    assert s.k3 == pytest.approx(k3, rel=1e-5)
    assert s.chi2 == pytest.approx((math.exp(0.04) + math.exp(-0.01) + 2) / 4 - 1, rel=1e-5)


SOUND = GapSummary(num_tokens=1, mean=0, abs_mean=0, abs_max=1e-5, k1=0, k3=0, chi2=0, beyond=0)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "none:"),
        ({"abs_max": 0.1, "k3": 1e-4}, "--rollout-is token_tis"),
        ({"abs_max": 0.1, "k3": 2e-3}, "--rollout-is token_icepop"),
        ({"abs_max": 1.0, "k3": 2e-3, "k1": -0.02}, "do not train"),
    ],
)
def test_the_advice_follows_the_size_of_the_gap(changes, advice):
    assert recommend(replace(SOUND, **changes)).startswith(advice)
