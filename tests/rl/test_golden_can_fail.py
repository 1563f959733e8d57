"""Each number list of our golden files, moved by a thousandth: the check of its file must not pass."""

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.rl.golden_given import ALLOWANCE
from tests.rl.test_golden import CHECKS

FOLDER = Path(__file__).parent.parent / "golden"
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def places(expected, before=()):
    """The keys on the way to each list or number, whatever the file allows itself left out."""
    for key, value in expected.items():
        if isinstance(value, dict):
            yield from places(value, (*before, key))
        elif not ALLOWANCE.match(key):
            yield (*before, key)


def moved(value):
    if isinstance(value, list):
        return [moved(value[0]), *value[1:]]
    return not value if isinstance(value, bool) else value + max(1e-3, 1e-3 * abs(value))


PLACES = [(name, place) for name, case in FILES.items() for place in places(case["expected"])]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("name", "place"), PLACES, ids=lambda x: x if isinstance(x, str) else ".".join(x))
def test_a_wrong_number_fails(name, place, precision):
    case = copy.deepcopy(FILES[name])
    *way, last = place
    holder = case["expected"]
    for key in way:
        holder = holder[key]
    holder[last] = moved(holder[last])
    with pytest.raises(AssertionError):
        CHECKS[case["kind"]](case, getattr(torch, precision), case["tolerance"][precision])
