"""A judge as the reward of an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts import evaluate
from tests.chat_server import completion, serving


def test_a_judge_of_our_own_engine_is_refused_where_none_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    judge = tmp_path / "judge.toml"
    judge.write_text('policy = "self"\ntemplate = "Is {answer} right?"\n')
    with serving(lambda body: completion("?")) as server:
        asked = ["--endpoint", server.url, "--endpoint-model", "m", "--env", "calc:1", "--num-tasks", "24"]
        out = str(tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["evaluate", *asked, "--out", out, "--reward", f"judge:{judge}"])
        assert evaluate.main() == 2
        assert server.requests == []
    assert "asks an engine of ours, and the model is behind an endpoint" in capsys.readouterr().err
