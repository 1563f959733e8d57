"""Cells as processes: real ones, that write a run, fail, hang or are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.comparing.cells import Job, earlier_attempts, read_outcome, run_job, run_jobs, status
from scripts.comparing.names import CompareError
from scripts.comparing.results import RunError, read_run
from tests.finished_run import ROOT
from tests.running import HEARS_CTRL_C
from tests.scripts.made_runs import evaluation, lines, make_run

WRITES = "import sys; from pathlib import Path; from tests.scripts.made_runs import make_run; "
RUN = WRITES + "make_run(Path(sys.argv[1]), {0: 20, 2: 70}); print('made'); sys.exit(int(sys.argv[2]))"


def job(folder: Path, code: str, *arguments: str, deadline_s: float = 60.0) -> Job:
    command = (sys.executable, "-c", code, str(folder / "run"), *arguments)
    return Job(name=folder.name, folder=folder, command=command, deadline_s=deadline_s)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("code", ["0", "1"])
def test_a_verdict_is_a_score_whether_pass_or_fail(tmp_path: Path, code: str):
    cell = job(tmp_path / "seed_0", RUN, code)
    outcome = run_job(cell)
    assert (outcome.exit_code, outcome.reason) == (int(code), "")
    assert status(cell) == "finished"
    assert read_outcome(cell) == outcome
    assert cell.log.read_text() == "made\n"
    assert cell.started.stat().st_mtime <= cell.log.stat().st_mtime


def test_a_finished_cell_is_not_run_again_and_a_failed_one_is(tmp_path: Path):
    good, bad = job(tmp_path / "seed_0", RUN, "0"), job(tmp_path / "seed_1", "raise SystemExit('no disk')")
    said: list[str] = []
    run_jobs([good, bad], said.append)
    written = good.record.stat().st_mtime_ns
    assert "seed_1: FAILED: ended with exit code 1 and without results" in said[-2]
    assert said[-1] == "    | no disk"
    said.clear()
    run_jobs([good, bad], said.append)
    assert said[0] == "1 of 2 cells are finished already and are not run again"
    assert good.record.stat().st_mtime_ns == written
    assert [path.name for path in earlier_attempts(bad)] == ["seed_1.failed-1"]
    assert status(bad) == "failed"


@pytest.mark.parametrize("code", ["2", "3", "130"])
def test_an_exit_code_that_is_no_verdict_is_a_failure_though_scores_were_written(tmp_path: Path, code: str):
    assert run_job(job(tmp_path / "seed_0", RUN, code)).reason == f"ended with exit code {code}"


def test_a_run_finds_the_recipes_and_files_named_from_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("here")
    cell = job(tmp_path / "seed_0", "import recipes; print(recipes.__file__, open('mine.txt').read())")
    monkeypatch.chdir(ROOT)  # as a Ray worker may be anywhere
    run_job(cell)
    assert cell.log.read_text() == f"{ROOT}/recipes/__init__.py here\n"


def test_a_half_finished_cell_is_moved_aside(tmp_path: Path):
    cell = job(tmp_path / "seed_0", RUN, "0")
    make_run(cell.run, {0: 10})
    assert status(cell) == "unfinished"
    run_job(cell)
    assert status(cell) == "finished"
    assert (tmp_path / "seed_0.unfinished-1" / "run" / "config.json").is_file()


def test_a_cell_that_hangs_ends_at_its_deadline(tmp_path: Path):
    cell = job(tmp_path / "seed_0", "import time; print('on', flush=True); time.sleep(600)", deadline_s=1.0)
    started = time.monotonic()
    outcome = run_job(cell)
    assert time.monotonic() - started < 20
    assert "deadline of 1 s" in outcome.reason
    assert outcome.exit_code == -signal.SIGTERM


def test_other_options_in_the_same_folder_are_refused(tmp_path: Path):
    run_job(job(tmp_path / "seed_0", RUN, "0"))
    with pytest.raises(CompareError, match="was run with other options"):
        status(job(tmp_path / "seed_0", RUN, "1"))


def test_an_interrupt_ends_the_child_and_leaves_the_cell_unfinished(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from scripts.comparing.cells import Job, run_job\n"
        "folder = Path(sys.argv[1])\n"
        "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "run_job(Job(name='x', folder=folder, command=(sys.executable, '-c', child), deadline_s=600))"
    )
    folder = tmp_path / "seed_0"
    parent = subprocess.Popen([*HEARS_CTRL_C, "-c", code, str(folder)], stderr=subprocess.PIPE)
    log = folder / "log.txt"
    ends = time.monotonic() + 200
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < ends, "the child did not start"
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=200)
    assert b"KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert not (folder / "cell.json").exists()


def test_a_curve_is_read_from_evaluations_and_tokens(tmp_path: Path):
    result = read_run(make_run(tmp_path / "run", {0: 20, 1: 50, 3: 70}, tokens=(400, 300, 350)))
    assert result.curve.tokens.tolist() == [0, 400, 1050]
    assert result.curve.success.tolist() == [0.2, 0.5, 0.7]
    assert (result.start, result.final, result.num_tokens, result.num_steps) == (0.2, 0.7, 1050, 3)


def test_tokens_of_groups_that_dynamic_sampling_dropped_are_spent(tmp_path: Path):
    run = make_run(tmp_path / "run", {0: 20, 1: 70}, tokens=(400,))
    lines(run / "metrics.jsonl", [{"step": 1, "tokens/sampled": 400.0, "rollout/dropped_tokens": 100.0}])
    assert read_run(run).num_tokens == 500


def test_evaluations_of_another_level_are_no_part_of_it(tmp_path: Path):
    run = make_run(tmp_path / "run", {})
    other = evaluation(1, 99) | {"level": 3}
    lines(run / "evaluations.jsonl", [evaluation(0, 20), other, evaluation(2, 60, unscored=4)])
    result = read_run(run)
    assert result.curve.success.tolist() == [0.2, 0.6]
    assert result.num_unscored == 4


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluations.jsonl", None, "evaluations.jsonl is missing: the run ended before it was written"),
        ("metrics.jsonl", None, "metrics.jsonl is missing"),
        ("config.json", None, "config.json is missing"),
        ("evaluations.jsonl", '{"step": 0}\n', "evaluations.jsonl:1 has no num_tasks, solved"),
        ("evaluations.jsonl", "\n{", "evaluations.jsonl:1 is not JSON"),
        ("metrics.jsonl", '{"step": 1, "tokens/sampled": 9}\n', "has step 2, metrics.jsonl ends at step 1"),
    ],
)
def test_a_run_that_is_not_whole_is_named(tmp_path: Path, file: str, text: str | None, message: str):
    run = make_run(tmp_path / "run", {0: 20, 2: 70})
    (run / file).unlink()
    if text is not None:
        (run / file).write_text(text)
    with pytest.raises(RunError, match=message):
        read_run(run)


def test_a_run_whose_last_step_was_not_evaluated_has_no_score(tmp_path: Path):
    with pytest.raises(RunError, match=r"trained policy \(step 2\) was not evaluated on calc level 2"):
        read_run(make_run(tmp_path / "run", {0: 20, 1: 70}))
