"""The command line of scripts.evaluate."""

from __future__ import annotations

import pytest
import tyro

from scripts._evaluate_options import Options, spread


@pytest.mark.parametrize(
    "written", [["--k", "1,4,16"], ["--k=1,4,16"], ["--k", "1", "4", "16"], ["--k", "1,4", "16"]]
)
def test_several_values_are_written_with_commas_or_spaces(written: list[str]) -> None:
    words = spread(["--model", "a,b", *written, "--env", "calc:1,calc:2", "--num-tasks", "8"])
    options = tyro.cli(Options, args=words)
    assert options.k == (1, 4, 16)
    assert options.env == ("calc:1", "calc:2")
    assert (options.model, options.num_tasks) == ("a,b", 8)


@pytest.mark.parametrize(
    "written",
    [
        ["--env", "calc:1", "--env", "calc:2", "--k", "1", "--k", "4"],
        ["--env=calc:1", "--k=1", "--env", "calc:2", "--k=4"],
        ["--k", "1", "--env", "calc:1", "--seed", "3", "--env=calc:2", "--k", "4"],
    ],
)
def test_an_option_that_is_repeated_adds_its_values(written: list[str]) -> None:
    options = tyro.cli(Options, args=spread([*written, "--model", "m"]))
    assert options.env == ("calc:1", "calc:2")
    assert options.k == (1, 4)
    assert options.model == "m"
