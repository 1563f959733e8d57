"""The golden files: every `*.json` of GOLDEN_DIR (default tests/golden), computed by the public table.

A file whose configuration is not offered is skipped by name, `not offered: NAME`, and listed in the summary.
One in words that are not known here, or that expects what nothing computes, fails. A setting that nothing
reads is warned of: the numbers tell whether it matters.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.rl import (
    golden_advantages,
    golden_critic,
    golden_distributions,
    golden_filters,
    golden_kl,
    golden_numeric,
    golden_policy,
    golden_preferences,
)
from tests.rl.golden_config import NotOfferedError

FILES = sorted(Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent.parent / "golden")).glob("*.json"))
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CHECKS = {
    **golden_policy.CHECKS,
    **golden_filters.CHECKS,
    **golden_kl.CHECKS,
    **golden_preferences.CHECKS,
    **golden_distributions.CHECKS,
    **golden_advantages.CHECKS,
    **golden_critic.CHECKS,
    **golden_numeric.CHECKS,
}
"""What checks a file, by its `kind`."""


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path, precision):
    case = {"config": {}, "variants": {}, "id": path.stem, **json.loads(path.read_text())}
    try:
        if case["kind"] not in CHECKS:
            raise NotOfferedError(f"kind {case['kind']!r}")
        CHECKS[case["kind"]](case, DTYPES[precision], case["tolerance"][precision])
        print(f"{path.stem}: agrees in {precision}")
    except NotOfferedError as reason:
        # All of ours are offered: a row that is broken must not pass for one that is not.
        assert "GOLDEN_DIR" in os.environ
        print(f"not offered: {path.stem}")
        pytest.skip(f"not offered: {path.stem} ({reason})")


def test_there_are_golden_files():
    assert FILES
