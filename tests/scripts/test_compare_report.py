"""What a comparison says: its numbers, its warnings, its page; and how two become one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from scripts.compare import exit_code
from scripts.comparing.analysis import analyse
from scripts.comparing.cells import Job
from scripts.comparing.comparison import choose_trials, entry_of
from scripts.comparing.names import Arm, CompareError, Setting
from scripts.comparing.plan import Cell
from scripts.comparing.report import findings, plain, summary, write_report
from tests.scripts.made_runs import BUDGET, cell, comparison, make_run

SEEDS = range(5)


def arm(
    name: str, finals: list[float], *, setting: str = "calc:2", start: float = 0.2
) -> list[dict[str, Any]]:
    return [cell(name, seed, [start, final], setting=setting) for seed, final in enumerate(finals)]


@pytest.fixture
def two_settings() -> dict[str, Any]:
    """`good` ends above `bad` on every seed of both settings."""
    cells = [
        *arm("good", [0.7, 0.72, 0.74, 0.76, 0.9]),
        *arm("bad", [0.3, 0.32, 0.34, 0.36, 0.38]),
        *arm("good", [0.5, 0.52, 0.54, 0.56, 0.58], setting="calc:3"),
        *arm("bad", [0.2, 0.22, 0.24, 0.26, 0.28], setting="calc:3"),
    ]
    return comparison(cells, settings=("calc:2", "calc:3"))


def test_scores_are_interquartile_means_by_setting_and_over_all(two_settings: dict[str, Any]):
    scores = analyse(two_settings)["scores"]
    assert scores["final"]["calc:2"]["good"].value == pytest.approx(0.74)  # of 0.72, 0.74, 0.76
    # of ten: floor(10 / 4) = 2 each end are left out: 0.54 0.56 0.58 0.70 0.72 0.74
    assert scores["final"]["all"]["good"].value == pytest.approx(
        (0.54 + 0.56 + 0.58 + 0.70 + 0.72 + 0.74) / 6
    )
    assert scores["auc"]["calc:2"]["good"].value == pytest.approx((0.2 + 0.74) / 2)  # a straight line
    low, high = scores["final"]["calc:2"]["good"].low, scores["final"]["calc:2"]["good"].high
    assert 0.699 < low < 0.74 < high <= 0.9


def test_a_terminal_shows_every_setting_and_all_of_them(two_settings: dict[str, Any]):
    analysis = analyse(two_settings)
    lines = summary(two_settings).splitlines()
    assert lines[0].startswith("final success")
    for view, heading in (("calc:2", "  calc:2"), ("calc:3", "  calc:3"), ("all", "  all settings")):
        where = lines.index(heading)
        for line, name in zip(lines[where + 1 :], ("good", "bad"), strict=False):
            assert line.split(maxsplit=1) == [name, str(analysis["scores"]["final"][view][name])]


def test_a_planted_difference_is_found(two_settings: dict[str, Any]):
    analysis = analyse(two_settings)
    # ten of ten: low is 0.025^(1/10)
    assert analysis["improvement"]["all"]["good"]["bad"].low == pytest.approx(0.6915, abs=1e-4)
    assert findings(analysis) == [
        "good ends above bad on the same seed with probability 1.000 (0.692 to 1.000)"
    ]
    assert analysis["improvement"]["calc:2"]["good"]["bad"].reason == "5 pairs, 6 are needed"


def test_the_same_numbers_under_two_names_are_not_told_apart():
    finals = [0.5, 0.6, 0.7, 0.8, 0.55, 0.65]
    analysis = analyse(comparison([*arm("grpo", finals), *arm("again", finals[::-1])]))
    assert findings(analysis) == ["the pair is not told apart"]


def test_time_to_threshold_counts_those_that_never_got_there():
    cells = [*arm("a", [0.8, 0.6, 0.3]), *arm("b", [0.3, 0.3, 0.8])]
    found = analyse(comparison(cells))["threshold"]["calc:2"]
    assert found["success"] == pytest.approx(0.6)  # halfway from 0.2 to 1
    # from 0.2 to 0.8 over 1000 tokens, 0.6 comes at 667; the seed that ends on 0.6 at 1000
    assert found["arms"]["a"] == {"reached": 2, "seeds": 3, "median_tokens": pytest.approx(1000)}
    assert found["arms"]["b"] == {"reached": 1, "seeds": 3, "median_tokens": None}
    given = analyse(comparison(cells, threshold=0.25))["threshold"]["calc:2"]
    assert given["arms"]["a"]["reached"] == 3


def failed(name: str, seed: int) -> dict[str, Any]:
    entry = cell(name, seed, [0.2, 0.5])
    for absent in ("tokens", "success", "num_tokens", "num_steps", "num_unscored"):
        del entry[absent]
    return entry | {"exit_code": 3, "failure": "ended with exit code 3", "log": ["STOPPED: <gap>"]}


def test_failures_are_counted_shown_and_pair_with_none(tmp_path: Path):
    cells = [*arm("a", [0.5, 0.6, 0.7]), *arm("b", [0.4, 0.5]), failed("b", 2)]
    made = comparison(cells)
    analysis = analyse(made)
    assert analysis["cost"]["b"]["failures"] == 1
    assert analysis["cost"]["b"]["cells"] == 3
    assert "1 of 6 cells failed" in analysis["warnings"][0]
    assert "2 pairs" in analysis["improvement"]["calc:2"]["a"]["b"].reason
    write_report(made, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "ended with exit code 3" in page
    assert "STOPPED: &lt;gap&gt;" in page


def test_an_arm_that_failed_altogether_is_still_in_the_report(tmp_path: Path):
    made = comparison([*arm("a", [0.5, 0.6]), failed("b", 0), failed("b", 1)])
    write_report(made, tmp_path)
    assert analyse(made)["scores"]["final"]["calc:2"]["b"].value is None
    assert "none (no scores)" in summary(made)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([0.97, 0.98], [0.96, 0.99], "within 0.05 of 1, so it cannot tell them apart; take a harder"),
        ([0.01, 0.0], [0.02, 0.04], "within 0.05 of 0, so it cannot tell them apart; take an easier"),
        ([0.97, 0.98], [0.9, 0.9], None),
    ],
)
def test_a_saturated_level_warns(a: list[float], b: list[float], said: str | None):
    warned = analyse(comparison([*arm("a", a, start=0.0), *arm("b", b, start=0.0)]))["warnings"]
    assert warned == [] if said is None else said in warned[0]


@pytest.mark.parametrize(
    ("finals", "said"),
    [
        ({"a": 0.97, "b": 0.95, "c": 0.5}, "saturated for a, b: they end within 0.05 of 1"),
        ({"a": 0.0, "b": 0.5, "c": 0.05}, "saturated for a, c: they end within 0.05 of 0"),
        ({"a": 0.97, "b": 0.94, "c": 0.0}, None),  # one alone at an end is told apart from the others
    ],
)
def test_arms_that_a_level_cannot_tell_apart_are_named(finals: dict[str, float], said: str | None):
    cells = [entry for name, final in finals.items() for entry in arm(name, [final, final], start=0.0)]
    warned = analyse(comparison(cells))["warnings"]
    assert len(warned) == (said is not None)
    assert said is None or said in warned[0]


CELL = Cell(
    arm=Arm(label="a", algorithm="grpo"), setting=Setting(label="calc:2", env="calc", level=2), seed=0
)


def run_cell(folder: Path, tokens: tuple[int, ...]) -> dict[str, Any]:
    """The entry of a cell that ran to its end, sampling `tokens`."""
    job = Job(name="x", folder=folder, command=("x",), deadline_s=1.0)
    make_run(job.run, {0: 20, len(tokens): 90}, tokens=tokens)
    job.record.write_text(json.dumps({"command": ["x"], "exit_code": 0, "seconds": 5.0, "reason": ""}))
    return entry_of(CELL, job, BUDGET)


def test_a_run_that_did_not_spend_its_budget_has_no_score_anywhere(tmp_path: Path):
    short = run_cell(tmp_path, (500, 400))
    assert short["failure"] == "num_steps ended it at 900 tokens of the budget of 1,000; raise num_steps"
    rest = [*arm("a", [0.0, 0.5])[1:], *arm("b", [0.1, 0.4])]
    analysis = analyse(comparison([short, *rest]))
    assert "1 of 4 cells failed and have no score (a on calc:2, seed 0: num_steps" in analysis["warnings"][0]
    assert analysis["seeds"]["final"]["calc:2"]["a"] == [0.5]
    assert analysis["seeds"]["auc"]["calc:2"]["a"] == [pytest.approx(0.35)]
    assert analysis["improvement"]["calc:2"]["a"]["b"].reason == "1 pair, 6 are needed"
    assert analysis["threshold"]["calc:2"]["arms"]["a"]["seeds"] == 1
    trial = [short | {"seed": 1000, "trial": [["learning_rate", "1"]]}]
    with pytest.raises(CompareError, match=r"every tuning trial of a on calc:2 failed .num_steps ended it"):
        choose_trials(
            trial, [Arm(label="a", algorithm="grpo")], [Setting(label="calc:2", env="calc", level=2)]
        )


def test_what_failed_and_unfinished_attempts_spent_is_counted(tmp_path: Path):
    for kind, tokens in (("failed-1", (300, 100)), ("unfinished-2", (70,))):
        make_run(tmp_path / f"seed_0.{kind}/run", {}, tokens=tokens)
    record = {"command": ["x"], "exit_code": 3, "seconds": 11.0, "reason": "ended with exit code 3"}
    (tmp_path / "seed_0.failed-1/cell.json").write_text(json.dumps(record))
    cut_off = tmp_path / "seed_0.unfinished-2"
    for name, seconds in (("started", 1000), ("run/metrics.jsonl", 1030), ("run/evaluations.jsonl", 1020)):
        (cut_off / name).touch()
        os.utime(cut_off / name, (seconds, seconds))
    with (cut_off / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tokens/samp')
    os.utime(cut_off / "run/metrics.jsonl", (1030, 1030))
    entry = run_cell(tmp_path / "seed_0", (500, 500))
    cost = analyse(comparison([entry]))["cost"]["a"]
    assert cost["seconds"] == 5.0 + 11.0 + 30.0
    assert cost["tokens"] == 1000 + 400 + 70
    assert cost["failures"] == 1


def test_what_a_failed_run_spent_is_counted(tmp_path: Path):
    job = Job(name="x", folder=tmp_path, command=("x",), deadline_s=1.0)
    make_run(job.run, {0: 20}, tokens=(500, 100))
    job.record.write_text(json.dumps({"command": ["x"], "exit_code": 3, "seconds": 5.0, "reason": "gap"}))
    entry = entry_of(CELL, job, BUDGET)
    cost = analyse(comparison([entry]))["cost"]["a"]
    assert (cost["tokens"], cost["seconds"], cost["failures"]) == (600, 5.0, 1)


def test_a_tuning_run_that_failed_warns_and_is_in_the_exit_code(tmp_path: Path):
    trial = failed("a", 1000) | {"trial": [["learning_rate", "2"]]}
    made = comparison(arm("a", [0.5, 0.6]), tuning_cells=[trial])
    analysis = analyse(made)
    (warned,) = analysis["warnings"]
    assert "1 of 1 tuning runs failed" in warned
    assert analysis["cost"]["a"]["tuning_failures"] == 1
    assert exit_code(made) == 1
    assert exit_code(made | {"tuning_cells": []}) == 0
    write_report(made, tmp_path)
    assert "tuning failures" in (tmp_path / "report.html").read_text()


def test_a_run_that_spent_its_budget_has_a_score(tmp_path: Path):
    whole = run_cell(tmp_path, (500, 500))
    assert (whole["failure"], whole["success"]) == ("", [0.2, 0.9])


def test_too_few_seeds_are_said_everywhere(tmp_path: Path):
    made = comparison([*arm("a", [0.5, 0.6]), *arm("b", [0.4, 0.5])])
    assert "no interval: 2 seeds of an environment, 5 are needed" in summary(made)
    write_report(made, tmp_path)
    assert "no interval: too few seeds" in (tmp_path / "report.html").read_text()


def test_the_page_needs_nothing_beside_it(tmp_path: Path, two_settings: dict[str, Any]):
    paths = write_report(two_settings, tmp_path)
    assert [path.name for path in paths] == [
        *("report.html", "comparison.json", "curves.png", "scores.png", "improvement.png")
    ]
    page = paths[0].read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    for png in paths[2:]:
        height, width, _ = image.imread(png).shape
        assert min(height, width) > 300


def test_tuning_is_shown_and_the_best_trial_chosen(tmp_path: Path, two_settings: dict[str, Any]):
    tuning = [
        cell("good", 1000, [0.2, final], trial=[["learning_rate", value]])
        for value, final in (("1e-4", 0.4), ("3e-4", 0.6), ("1e-3", 0.5))
    ]
    chosen = choose_trials(
        tuning, [Arm(label="good", algorithm="grpo")], [Setting(label="calc:2", env="calc", level=2)]
    )
    assert chosen == {("calc:2", "good"): (("learning_rate", "3e-4"),)}
    write_report(two_settings | {"tuning_cells": tuning}, tmp_path)
    assert "learning_rate=3e-4" in (tmp_path / "report.html").read_text()


def test_a_trial_that_failed_is_not_chosen_and_none_left_is_refused():
    arms, settings = [Arm(label="a", algorithm="grpo")], [Setting(label="calc:2", env="calc", level=2)]
    good = cell("a", 1000, [0.2, 0.3], trial=[["learning_rate", "1"]])
    bad = failed("a", 1000) | {"trial": [["learning_rate", "2"]]}
    assert choose_trials([bad, good], arms, settings) == {("calc:2", "a"): (("learning_rate", "1"),)}
    with pytest.raises(CompareError, match="every tuning trial of a on calc:2 failed"):
        choose_trials([bad], arms, settings)


def test_the_json_holds_every_number_of_the_report(tmp_path: Path, two_settings: dict[str, Any]):
    write_report(two_settings, tmp_path)
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["analysis"] == json.loads(json.dumps(plain(analyse(two_settings))))
    assert saved["analysis"]["scores"]["final"]["calc:2"]["good"]["value"] == pytest.approx(0.74)
    assert saved["budget_tokens"] == BUDGET
