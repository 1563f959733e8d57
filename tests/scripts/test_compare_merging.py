"""Two comparisons become one only where that is one comparison, and the page says what then differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.comparing.analysis import analyse
from scripts.comparing.comparison import portable
from scripts.comparing.merging import merge, without_threads
from scripts.comparing.names import CompareError
from scripts.comparing.report import write_report
from tests.scripts.made_runs import cell, comparison

CODE = {"rl": "1111"}


def arm(name: str, finals: list[float], **more: Any) -> list[dict[str, Any]]:
    """Cells of an arm, with what each wrote down; `more` are changed fields, and `code`."""
    code = more.pop("code", CODE)
    return [
        cell(
            name,
            seed,
            [0.2, final],
            config={"algorithm": name, "seed": seed, "env": "calc", "learning_rate": 0.1} | more,
            code=code,
            inputs={},
        )
        for seed, final in enumerate(finals)
    ]


def written(path: Path, made: dict[str, Any]) -> Path:
    path.write_text(json.dumps(made))
    return path


def test_a_comparison_takes_up_another_one(tmp_path: Path):
    first = comparison([*arm("a", [0.5, 0.6]), *arm("b", [0.4, 0.5])])
    write_report(first, tmp_path / "first")
    merged = merge(comparison(arm("c", [0.7, 0.8])), tmp_path / "first" / "comparison.json")
    assert [entry["label"] for entry in merged["arms"]] == ["c", "a", "b"]
    assert len(merged["cells"]) == 6
    assert analyse(merged)["improvement"]["calc:2"]["c"]["a"].value == 1.0
    assert len(merged["commands"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget_tokens": 2000}, "budget_tokens: 1000 here, 2000 there"),
        ({"settings": []}, "settings: "),
        ({"shared": []}, "shared: "),
        ({"versions": {}}, "versions: "),
        ({"format": 2}, "expected a comparison.json of format 1"),
        ({"arms": [{"label": "c", "algorithm": "other"}]}, "c is another arm there"),
        ({"cells": arm("c", [0.7])}, "c on calc:2, seed 0 is in both"),
    ],
)
def test_what_is_not_the_same_comparison_is_not_merged(tmp_path: Path, change: dict[str, Any], message: str):
    other = written(tmp_path / "comparison.json", comparison(arm("a", [0.5])) | change)
    with pytest.raises(CompareError, match=message):
        merge(comparison(arm("c", [0.7])), other)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_comparison_is_not_merged(tmp_path: Path, text: str):
    path = tmp_path / "comparison.json"
    path.write_text(text)
    with pytest.raises(CompareError, match="expected a comparison"):
        merge(comparison(arm("c", [0.7])), path)


def test_what_differs_is_that_of_both_together(tmp_path: Path):
    other = written(tmp_path / "comparison.json", comparison(arm("a", [0.5, 0.6])))
    merged = merge(comparison(arm("c", [0.7, 0.8]), diff={}), other)
    assert merged["diff"] == {
        "algorithm": {"c": "c on calc:2, seed 0, 1", "a": "a on calc:2, seed 0, 1"},
        "seed": {"0": "c, a on calc:2, seed 0", "1": "c, a on calc:2, seed 1"},
    }
    assert analyse(merged)["warnings"] == []
    write_report(merged, tmp_path)
    assert "These fields, and no other" in (tmp_path / "report.html").read_text()


def test_settings_that_nobody_declared_are_refused(tmp_path: Path):
    other = written(tmp_path / "comparison.json", comparison(arm("a", [0.5], learning_rate=0.3)))
    with pytest.raises(
        CompareError, match=r"more than was declared.*\n.*learning_rate: 0.1 in .*c/seed_0, 0.3"
    ):
        merge(comparison(arm("c", [0.7])), other)


def test_other_code_is_a_warning(tmp_path: Path):
    other = written(tmp_path / "comparison.json", comparison(arm("a", [0.5], code={"rl": "2222"})))
    (warned,) = analyse(merge(comparison(arm("c", [0.7])), other))["warnings"]
    assert "not made by the same code: code: rl 1111 in cells/calc-2/c/seed_0, 2222 in" in warned


def test_runs_that_do_not_say_their_settings_are_a_warning(tmp_path: Path):
    other = written(tmp_path / "comparison.json", comparison([cell("a", 0, [0.2, 0.5])]))
    merged = merge(comparison(arm("c", [0.7])), other)
    assert "do not say their settings" in analyse(merged)["warnings"][0]
    write_report(merged, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "no other" not in page
    assert "may differ in more" in page


def test_runs_side_by_side_and_one_by_one_are_merged(tmp_path: Path):
    shared = ["--num-steps", "30"]
    for threads in (["--learner-threads", "1"], ["--learner-threads=1"]):
        theirs = comparison(arm("a", [0.5], learner_threads=1), shared=[*shared, *threads])
        other = written(tmp_path / "comparison.json", theirs)
        merged = merge(comparison(arm("c", [0.7], learner_threads=2), shared=shared), other)
        assert set(merged["diff"]) == {"algorithm", "learner_threads"}
    assert without_threads(["--learner-threads", "1", "--smoke"]) == ["--smoke"]


@pytest.mark.parametrize("name", ["arms", "cells", "tuning_cells", "commands", "threshold", "shared"])
def test_what_a_comparison_lacks_is_said(tmp_path: Path, name: str):
    theirs = comparison(arm("a", [0.5]))
    del theirs[name]
    with pytest.raises(CompareError, match=name):
        merge(comparison(arm("c", [0.7])), written(tmp_path / "comparison.json", theirs))


def test_what_a_cell_lacks_is_said(tmp_path: Path):
    theirs = comparison(arm("a", [0.5]))
    del theirs["cells"][0]["failure"]
    with pytest.raises(CompareError, match=r"cells\[0\] has no failure"):
        merge(comparison(arm("c", [0.7])), written(tmp_path / "comparison.json", theirs))


def test_a_run_that_did_not_spend_its_budget_has_no_score_from_there_either(tmp_path: Path):
    theirs = arm("a", [0.5])[0] | {"num_tokens": 900}
    merged = merge(comparison(arm("c", [0.7])), written(tmp_path / "comparison.json", comparison([theirs])))
    assert analyse(merged)["scores"]["final"]["calc:2"]["a"].value is None


def test_settings_in_comparison_json_name_no_place_of_one_machine() -> None:
    config = {"run_dir": "/x/cells/run", "model": f"{Path.home()}/models/base", "env": "calc", "level": 1}
    assert portable(config) == {"model": "~/models/base", "env": "calc", "level": 1}
