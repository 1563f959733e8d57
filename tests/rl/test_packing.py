"""Which samples go through the model together."""

from __future__ import annotations

import numpy as np
import pytest

from rl.packing import passes
from rl.trie import num_trie_tokens
from tests.rl.test_trie import group, ragged


def test_passes_of_tokens_hold_each_sample_once_and_are_full():
    rng = np.random.default_rng(0)
    samples = [s for number in range(32) for s in group(rng, 128, rng.integers(4, 64, 8).tolist(), number)]
    found = passes(samples, num_rows=1, num_tokens=4096)
    sizes = [num_trie_tokens([samples[row] for row in rows]) for rows in found]
    assert sorted(row for rows in found for row in rows) == list(range(len(samples)))
    assert max(sizes) <= 4096
    assert sum(sizes) <= 1.03 * num_trie_tokens(samples)  # few groups are divided
    assert sum(sorted(sizes)[1:]) >= 0.97 * 4096 * (len(sizes) - 1)  # all but the last are full


def test_a_budget_below_the_longest_sample_is_refused():
    with pytest.raises(ValueError, match="micro_batch_tokens = 62, and 2-0 has 63 tokens; expected at least"):
        passes(ragged(), num_rows=1, num_tokens=62)


def test_passes_of_rows_keep_groups_together():
    assert passes(ragged(), num_rows=4) == [[0, 1, 2, 3], [4, 5, 6]]
    assert passes(ragged(), num_rows=4, layout="padded") == [[3, 0, 2, 4], [1, 5, 6]]
