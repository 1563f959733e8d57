"""Cells of one comparison were made of the same: code, versions, and the files that a user names."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.compare import Options, make_plan, run_cells
from scripts.comparing.cells import Job, Outcome
from scripts.comparing.names import CompareError
from scripts.comparing.plan import Cell
from scripts.comparing.sources import manifests_now, require_same_source
from scripts.comparing.wall import Wall
from tests.scripts.made_runs import VERSIONS, make_run

CODE = {"rl": "1111", "envs": "2222"}


def cells(algorithms: str = "grpo,rloo", **options: Any) -> list[Cell]:
    chosen = {"env": ("calc:2",), "seeds": 2, "budget_tokens": 1000} | options
    return make_plan(Options(algorithms=algorithms, **chosen), ()).reported_cells({})


def manifests(**changed: Any) -> list[tuple[Cell, dict[str, Any]]]:
    """Four cells, the last one with `changed`."""
    made = [
        (cell, {"source": {"commit": "a", "dirty": False}, "code": CODE, "versions": VERSIONS})
        for cell in cells()
    ]
    return [*made[:-1], (made[-1][0], made[-1][1] | changed)]


def test_a_commit_that_changes_no_code_is_no_difference():
    require_same_source(manifests(source={"commit": "b", "dirty": True}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"code": CODE | {"rl": "3333"}}, r"code: rl 1111 in .*grpo/seed_0 .*, 3333 in .*rloo/seed_1"),
        ({"code": None}, r"code: envs 2222 in .*, absent in .*rloo/seed_1"),
        ({"versions": VERSIONS | {"ray": "9"}}, r"versions: ray absent in .*, 9 in .*rloo/seed_1"),
    ],
)
def test_other_code_under_one_commit_is_refused(changed: dict[str, Any], message: str):
    with pytest.raises(CompareError, match=message):
        require_same_source(manifests(**changed))


def test_many_cells_are_counted_rather_than_listed():
    made = [(cell, {"code": {"rl": str(cell.seed == 9)}}) for cell in cells("grpo", seeds=10)]
    with pytest.raises(CompareError, match=r"seed_2 and 6 more, True in cells/calc-2/grpo/seed_9"):
        require_same_source(made)


@pytest.mark.parametrize("field", ["algorithm", "env", "reward"])
def test_a_file_that_was_edited_between_cells_is_refused(field: str):
    def made(name: str, digest: str) -> list[tuple[Cell, dict[str, Any]]]:
        first, last = cells()[0], cells()[-1]
        return [
            (first, {field: "mine.py:A", "inputs": {field: "1111"}}),
            (last, {field: name, "inputs": {field: digest}}),
        ]

    require_same_source(made("mine.py:B", "1111"))
    require_same_source(made("other.py:A", "2222"))  # another file is a declared difference
    with pytest.raises(CompareError, match=rf"{field}: mine.py with digest 1111 in .*, 2222 in "):
        require_same_source(made("mine.py:B", "2222"))


def test_what_a_run_will_note_is_known_before_it_starts(tmp_path: Path):
    from recipes.calc_grpo import CONFIG
    from rl.machine import Machine
    from rl.run_dir import run_manifest

    ((_, now),) = manifests_now([(cells()[0], CONFIG)])
    noted = run_manifest(CONFIG, Machine.here())
    assert {name: now[name] for name in ("code", "versions", "inputs", "algorithm", "env", "model")} == {
        name: noted[name] for name in ("code", "versions", "inputs", "algorithm", "env", "model")
    }


@pytest.fixture
def comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs grpo on two seeds; each run is written by hand, with the code digest that `digests` holds next."""

    def compare(digests: list[str]) -> list[str]:
        started = []

        def ran(jobs: list[Job], say: object, *, num_parallel: int, ended: Any) -> None:
            for job in jobs:
                if job.record.is_file():
                    continue
                started.append(job.name)
                seed = int(job.name[-1])
                make_run(job.run, {0: 20, 2: 70}, seed=seed)
                manifest = {"versions": {}, "code": {"rl": digests.pop(0)}}
                (job.run / "manifest.json").write_text(json.dumps(manifest))
                outcome = Outcome(command=job.command, exit_code=0, seconds=1.0)
                job.record.write_text(json.dumps(asdict(outcome)))
                ended(job, outcome)

        monkeypatch.setattr("scripts.compare.run_jobs", ran)
        options = Options(
            algorithms="grpo", env=("calc:2",), seeds=3, budget_tokens=1000, out=tmp_path / "out"
        )
        plan = make_plan(options, ())
        try:
            run_cells(plan, plan.reported_cells({}), options, Wall(options.out), [])
        except CompareError as error:
            return [*started, str(error)]
        return started

    return compare


def test_other_code_is_refused_as_soon_as_a_cell_ends(comparing: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scripts.compare.manifests_now", lambda configs: [])
    first, second, said = comparing(["1", "2", "3"])
    assert (first[-6:], second[-6:]) == ("seed_0", "seed_1")  # the third is not started
    assert "code: rl 1 in cells/calc-2/grpo/seed_0, 2 in cells/calc-2/grpo/seed_1" in said


def test_code_that_is_not_that_of_finished_cells_starts_none(
    comparing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def now(digest: str) -> None:
        monkeypatch.setattr(
            "scripts.compare.manifests_now",
            lambda configs: [(cell, {"versions": {}, "code": {"rl": digest}}) for cell, _ in configs],
        )

    now("1")
    assert len(comparing(["1", "1", "1"])) == 3
    shutil.rmtree(tmp_path / "out/cells/calc-2/grpo/seed_2")
    now("3")
    (said,) = comparing([])
    assert "code: rl 1 in cells/calc-2/grpo/seed_0 and cells/calc-2/grpo/seed_1, 3 in" in said


def test_an_attempt_that_is_killed_is_counted_up_to_its_last_cell(
    comparing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scripts.compare.manifests_now", lambda configs: [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/wall.json").write_text("[7.5]")
    noted: list[float] = []

    class Listening(Wall):
        def note(self) -> float:
            noted.append(super().note())
            return noted[-1]

    monkeypatch.setattr(f"{__name__}.Wall", Listening)
    comparing(["1", "1", "1"])
    assert len(noted) == 3  # though nobody came to the end and noted it there
    before, attempt = json.loads((tmp_path / "out/wall.json").read_text())
    assert (before, sum((before, attempt))) == (7.5, noted[-1])
