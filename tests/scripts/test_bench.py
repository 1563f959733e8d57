"""python -m scripts.bench: a figure knows whether it meets its target; what is not right is void."""

import json
import subprocess
import sys

import pytest

from scripts.benching.report import Figure, Measurement, percentile


def test_a_figure_is_met_at_its_target_and_missed_beyond_it():
    assert Figure(name="ratio", value=1.5, target=1.5).is_met
    assert not Figure(name="ratio", value=1.501, target=1.5).is_met
    assert Figure(name="share", value=0.7, target=0.7, is_floor=True).is_met
    assert not Figure(name="share", value=0.699, target=0.7, is_floor=True).is_met
    assert "MISSED" in str(Figure(name="ratio", value=2, target=1.5))


def test_a_void_measurement_is_not_sound_whatever_its_figures():
    figures = (Figure(name="ratio", value=1, target=1.5),)
    assert Measurement(subject="s", figures=figures).is_sound
    assert not Measurement(subject="s", figures=figures, void="it is open").is_sound
    assert "VOID: it is open" in "\n".join(
        Measurement(subject="s", figures=figures, void="it is open").lines()
    )


def test_a_percentile_is_one_of_the_values():
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(101)), 0.99) == 99


@pytest.mark.slow
@pytest.mark.extra
def test_both_subjects_measure_what_is_right_and_leak_nothing(tmp_path):
    record = tmp_path / "bench.json"
    command = [sys.executable, "-m", "scripts.bench", "sandbox", "reward", "--json", str(record)]
    command += ["--sandbox-rounds", "5", "--sandbox-cycles", "20"]
    command += ["--reward-samples", "100", "--reward-rounds", "1"]
    subprocess.run(
        command, capture_output=True, timeout=240
    )  # whether targets are met is the machine's affair
    measured = json.loads(record.read_text())["measurements"]
    assert [measurement["void"] for measurement in measured] == ["", ""]
    figures = {figure["name"]: figure for measurement in measured for figure in measurement["figures"]}
    assert figures["leaked by 20 sandboxes"]["value"] == 0
    assert figures["scored by 8 workers"]["value"] > 0
