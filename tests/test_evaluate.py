"""scripts.evaluate: a run's policy, another's, an endpoint over HTTP, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envs.messages import message
from envs.registry import resolve_env
from envs.splits import Split
from envs.tools import assistant_message
from rl.evaluation import read_evaluation
from rollout.chat_endpoint import chat_messages
from rollout.task_stream import TaskStream
from scripts.evaluate import main
from tests.chat_server import completion, playing, serving
from tests.finished_run import ROOT, FinishedRun, run_recipe
from tests.tiny import make_tiny_model

CALC = resolve_env("calc")
TASKS = TaskStream(env="calc", level=1, run_seed=0, split=Split.HELD_OUT).slice(0, 24)
KEY = "sk-secret-0123456789"


def run_main(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *options])
    return main()


def endpoint_options(url: str, out: Path, *more: str) -> list[str]:
    named = ["--endpoint", url, "--endpoint-model", "m", "--env", "calc:1", "--num-tasks", "24"]
    return [*named, "--out", str(out), *more]


# A run's own policy


def evaluated(out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    command = [sys.executable, "-m", "scripts.evaluate", *options, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    finished = run_recipe(
        tmp_path_factory.mktemp("runs") / "run", ["--eval-every", "1", "--seed", "0"], timeout_s=550
    )
    assert finished.code == 0, finished.screen
    return finished


def successes(run: FinishedRun, step: int) -> dict[str, bool]:
    """Task id -> whether the run's own evaluation after `step` steps found it solved."""
    records = (record for record in run.records if record.split == "eval" and record.step == step)
    return {r.trajectory.episode.task.id: r.trajectory.score.success == 1.0 for r in records}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_runs_policy_is_evaluated_as_the_run_did_to_the_episode(run: FinishedRun, tmp_path: Path) -> None:
    """Same tasks, temperature and seeds: sample 0 of a task is the run's own, beside three others."""
    base = json.loads((run.path / "config.json").read_text())["model"]
    out = tmp_path / "out"
    done, found = evaluated(
        out, "--model", str(run.path), "--num-tasks", "32", "--k", "1", "4", "--against", base
    )
    ours, theirs = read_evaluation(out / "evaluation.json"), read_evaluation(out / "against.json")
    assert {o.task: o.solved[0] for o in ours.outcomes} == successes(run, 3)
    assert {o.task: o.solved[0] for o in theirs.outcomes} == successes(run, 0)
    assert all(outcome.num_samples == 4 for outcome in ours.outcomes)
    assert len({outcome.solved for outcome in ours.outcomes}) > 2  # the samples of a task differ
    (result,) = found["results"]
    last = json.loads((run.path / "evaluations.jsonl").read_text().splitlines()[-1])
    assert result["average"]["low"] <= last["success"] <= result["average"]["high"]
    (difference,) = found["against"]["differences"]
    means = [r["average"]["value"] for r in (result, found["against"]["results"][0])]
    assert difference["average"]["value"] == pytest.approx(means[0] - means[1], abs=1e-12)
    assert difference["average"]["low"] < difference["average"]["value"] < difference["average"]["high"]
    assert found["policy"]["step"] == 3
    assert f"{run.path} after step 3 less {base}, paired by task" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_evaluating_in_between_changes_nothing_of_the_run(run: FinishedRun, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["solved"] == sum(successes(run, row["step"]).values())
        assert row["success"] == row["solved"] / row["num_tasks"]
        assert row["low"] < row["success"] < row["high"]
        assert row["unscored"] == 0
    without = run_recipe(tmp_path / "without", ["--seed", "0"], timeout_s=550)
    assert without.code == 0, without.screen
    for step, other in zip(run.metrics, without.metrics, strict=True):
        timed = {"tokens/per_s", *(name for name in step if name.startswith("time/") or "second" in name)}
        untimed = step.keys() - timed
        assert {name: step[name] for name in untimed} == {name: other[name] for name in untimed}
    weights = [r.path / "checkpoints" / "step_000003" / "model.safetensors" for r in (run, without)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# An endpoint


def test_an_endpoint_that_plays_well_solves_everything(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(playing(CALC.reference, TASKS)) as server:
        code = run_main(monkeypatch, *endpoint_options(server.url, tmp_path / "out", "--k", "1", "2"))
    assert code == 0
    assert "calc:1  24 tasks x 2  0 unscored  pass@1 1.000 (0.862 to 1.000)" in capsys.readouterr().out
    found = read_evaluation(tmp_path / "out" / "evaluation.json")
    assert {outcome.task for outcome in found.outcomes} == {task.id for task in TASKS}
    assert {outcome.solved for outcome in found.outcomes} == {(True, True)}
    asked = server.requests[1]
    assert asked["messages"][0]["role"] == "system"
    assert "[calc expression]: Compute one operation" in asked["messages"][0]["content"]
    assert len({body["seed"] for body in server.requests[1:]}) == 24 * 2 * 3  # three turns an episode
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in (tmp_path / "out" / "evaluation.json").read_text()


def test_levels_with_many_turns_have_them_beside_others(tmp_path: Path, monkeypatch) -> None:
    grid = resolve_env("grid")
    tasks = TaskStream(env="grid", level=2, run_seed=0, split=Split.HELD_OUT).slice(0, 24)
    play, walk = playing(CALC.reference, TASKS), playing(grid.reference, tasks)
    with serving(lambda body: (walk if "[go" in body["messages"][0]["content"] else play)(body)) as server:
        options = endpoint_options(server.url, tmp_path / "out", "--env", "grid:2")
        assert run_main(monkeypatch, *options) == 0
    found = read_evaluation(tmp_path / "out" / "evaluation.json")
    assert {(outcome.env, outcome.solved) for outcome in found.outcomes} == {
        ("calc", (True,)),
        ("grid", (True,)),
    }
    assert found.settings["max_turns_by_cell"] == {"grid:2": 12}


def test_a_former_evaluation_is_compared_with(tmp_path: Path, monkeypatch, capsys) -> None:
    with serving(playing(CALC.reference, TASKS)) as server:
        assert run_main(monkeypatch, *endpoint_options(server.url, tmp_path / "good")) == 0
    former = ["--against", str(tmp_path / "good")]
    with serving(playing(CALC.hacks["mental_arithmetic"], TASKS)) as server:
        options = endpoint_options(server.url, tmp_path / "hack", *former, "--temperature", "0.5")
        assert run_main(monkeypatch, *options) == 0
        (difference,) = json.loads((tmp_path / "hack" / "evaluation.json").read_text())["against"][
            "differences"
        ]
        assert difference["average"]["value"] == -1.0
        assert difference["average"]["high"] < -0.7
        assert "NOTE: the settings differ: eval_temperature: 0.5 against 1.0" in capsys.readouterr().out
        other_seed = endpoint_options(server.url, tmp_path / "x", *former, "--seed", "1")
        assert run_main(monkeypatch, *other_seed) == 2
        assert "24 of 24 tasks are only in this (first calc-1-" in capsys.readouterr().err
        more = endpoint_options(server.url, tmp_path / "x", *former, "--k", "4")
        assert run_main(monkeypatch, *more) == 2
        assert "there are 1 samples a task; give --k up to 1" in capsys.readouterr().err


def test_an_episode_that_the_endpoint_failed_stays_in_the_denominator(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    play = playing(CALC.reference, TASKS)
    lost = TASKS[5].messages[-1].text

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return (500, {"error": "lost"}) if body["messages"][-1]["content"] == lost else play(body)

    with serving(answer) as server:
        options = endpoint_options(server.url, tmp_path / "out", "--num-retries", "0")
        assert run_main(monkeypatch, *options) == 0
    screen = capsys.readouterr().out
    assert "1 unscored  pass@1 0.958" in screen
    assert "unscored episodes count as not solved: EndpointError 1" in screen
    found = read_evaluation(tmp_path / "out" / "evaluation.json")
    assert [outcome.solved for outcome in found.outcomes if outcome.task == TASKS[5].id] == [(None,)]


def test_a_failure_that_passes_is_tried_again(tmp_path: Path, monkeypatch) -> None:
    play, seen = playing(CALC.reference, TASKS), set[str]()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        text = json.dumps(body["messages"])
        if text not in seen:
            seen.add(text)
            return 503, {"error": "busy"}
        return play(body)

    with serving(answer) as server:
        assert run_main(monkeypatch, *endpoint_options(server.url, tmp_path / "out")) == 0
    found = read_evaluation(tmp_path / "out" / "evaluation.json")
    assert {outcome.solved for outcome in found.outcomes} == {(True,)}


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda body: (401, {"error": {"message": f"no such key: {KEY}"}}), "no such key: [key]"),
        (lambda body: (404, {"error": {"message": "no model m"}}), "no model m"),
        (lambda body: (200, {"hello": 1}), "its answer is no chat completion"),
        (lambda body: time.sleep(8) or completion("late"), "timed out"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_refused_without_its_key(
    tmp_path: Path, monkeypatch, capsys, answer, complaint: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    started = time.monotonic()
    with serving(answer) as server:
        options = endpoint_options(server.url, tmp_path / "out", "--request-s", "1", "--num-retries", "1")
        assert run_main(monkeypatch, *options) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert server.url in said.err
    assert KEY not in said.err + said.out
    assert time.monotonic() - started < 30
    assert not (tmp_path / "out").exists()


def test_what_was_said_goes_back_verbatim_and_replies_become_one_message() -> None:
    env = CALC.make_env()
    said = "so [calc 1+1] and [calc 2+2]"
    transcript = [
        message("user", "(1+1)*4"),
        assistant_message(said, env.tools),
        message("tool", "2", tool_call_id="call_0"),
        message("tool", "4", tool_call_id="call_1"),
    ]
    chat = chat_messages(transcript, [said], env.tools)
    assert [(entry["role"], entry["content"]) for entry in chat[1:]] == [
        ("user", "(1+1)*4"),
        ("assistant", said),
        ("user", "2\n4"),
    ]


# What is refused


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "neither was given"),
        (["--model", "{model}"], "--env NAME:LEVEL is missing"),
        (["--model", "{model}", "--env", "calc"], "expected NAME:LEVEL, for example calc:1"),
        (["--model", "{model}", "--env", "clac:1"], "did you mean 'calc'"),
        (["--model", "{model}", "--env", "calc:9"], "unknown level of environment 'calc' '9'"),
        (["--model", "{model}", "--env", "calc:1", "calc:1"], "--env calc:1 is there twice"),
        (["--model", "{tmp}/nowhere", "--env", "calc:1"], "no such folder"),
        (["--model", "{tmp}", "--env", "calc:1"], "no readable config.json"),
        (["--model", "{tmp}/run", "--env", "calc:1"], "is a run without a checkpoint yet"),
        (["--model", "{tmp}/strange"], "has no env: not a run's"),
        (["--model", "{model}", "--env", "calc:1", "--k", "0"], "expected whole numbers from 1"),
        (["--model", "{model}", "--env", "calc:1", "--top-p", "0"], "--top-p 0.0: expected more than 0"),
        (["--model", "{model}", "--env", "calc:1", "--temperature", "0", "--k", "4"], "are all equal"),
        (["--model", "{model}", "--env", "calc:1", "--max-turns", "2"], "takes 3 turns"),
        (["--model", "{model}", "--env", "calc:1", "--request-s", "5"], "no effect with --model"),
        (["--endpoint", "localhost:8000", "--endpoint-model", "m"], "expected an address like"),
        (["--endpoint", "http://x/v1"], "needs --endpoint-model"),
        (["--endpoint", "http://x/v1", "--endpoint-model", "m", "--top-k", "3"], "no effect with --endpoint"),
        (
            ["--model", "{model}", "--env", "calc:1", "--against", "{tmp}/bad.json"],
            "bad.json is no evaluation",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tmp_path: Path, model: Path, monkeypatch, capsys, options: list[str], complaint: str
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "strange" / "checkpoints" / "step_000001").mkdir(parents=True)
    (tmp_path / "strange" / "config.json").write_text("{}")
    (tmp_path / "bad.json").write_text('{"format": 1, "tasks": [')
    filled = [option.format(tmp=tmp_path, model=model) for option in options]
    assert run_main(monkeypatch, *filled, "--out", str(tmp_path / "out"), "--num-tasks", "24") == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def test_results_are_never_overwritten(tmp_path: Path, model: Path, monkeypatch, capsys) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    assert run_main(monkeypatch, "--model", str(model), "--env", "calc:1", "--out", str(tmp_path)) == 2
    assert "is not empty; give a new or an empty folder" in capsys.readouterr().err
