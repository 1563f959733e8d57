"""python -m scripts.bench: a figure knows whether it meets its target; what is not right is void."""

import json
import subprocess
import sys

import pytest

from scripts.benching import learner, step
from scripts.benching.report import Figure, Measurement, percentile
from scripts.benching.workload import Case


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


SMALL = Case(name="fixed 128/64", prompt_len=16, completion_len=8, num_prompts=2, group_size=4)


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.timeout(900)
def test_a_token_leaked_from_a_sibling_voids_the_learners_measurement():
    leaked = learner.measure_case(SMALL, rounds=1, leak=True)
    assert "off the dense reference" in leaked.void
    assert not leaked.is_sound


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.timeout(1800)
def test_both_sides_take_the_same_step_in_training_and_as_a_whole():
    trained = learner.measure_case(SMALL, rounds=2)
    assert trained.void == ""
    figures = {figure.name: figure.value for figure in trained.figures}
    assert figures["gate, TRL: max |dlogp| to dense float32"] <= 1e-5
    assert any(name.startswith("TRL / ours") for name in figures)
    whole = step.measure_case(SMALL, rounds=2)
    assert whole.void == ""
    assert {figure.name for figure in whole.figures} >= {"TRL / ours: step, least CPU"}


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.timeout(900)
def test_the_two_heads_agree_and_their_memory_is_measured(tmp_path):
    record = tmp_path / "bench.json"
    command = [
        sys.executable,
        "-m",
        "scripts.bench",
        "head",
        "bytes",
        "--head-vocab",
        "8192",
        "--rounds",
        "2",
    ]
    subprocess.run([*command, "--json", str(record)], capture_output=True, timeout=800)
    read = json.loads(record.read_text())
    assert [measurement["void"] for measurement in read["measurements"]] == ["", ""]
    assert "trl==1.16.0" in read["trl"]
