"""scripts.evaluate --adapters: several adapters of one model on one engine, and what is refused of them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel

from rl.checkpoint import HASHES
from rl.config import Config
from rl.evaluation import read_evaluation
from rl.learner import Learner
from rollout.record import read_records
from scripts._evaluate_adapters import find_adapters
from scripts._evaluated import find_policy
from scripts.evaluate import main
from tests.made_adapters import make_adapter
from tests.rl.test_lora import learner
from tests.tiny import load, make_tiny_mixture, make_tiny_model, reference_logprobs

NUM_TASKS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `base`, its adapters `one` and `two`, and others."""
    folder = tmp_path_factory.mktemp("made")
    base = make_tiny_model(folder / "base", tied=False)
    make_adapter(base, folder / "one", seed=1)
    make_adapter(base, folder / "two", seed=2, rank=8, targets=["o_proj", "q_proj"])
    make_adapter(base, folder / "of_tokens", seed=3, targets=["q_proj", "embed_tokens"])
    make_adapter(base, folder / "huge", seed=4, rank=513, targets=["q_proj"])
    twin = make_tiny_model(folder / "twin", tied=False, seed=9)
    make_adapter(twin, folder / "of_twin", seed=5)
    make_adapter(make_tiny_model(folder / "deep", tied=False, num_layers=3), folder / "of_deep", seed=6)
    (folder / "sub").mkdir()
    shutil.copytree(folder / "two", folder / "sub" / "one")
    shutil.copytree(folder / "two", folder / "base_too" / "base")
    return folder


def run_main(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *options])
    return main()


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.timeout(400)
def test_adapters_and_their_model_are_evaluated_on_one_engine_each_as_itself(
    made: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Every token's log-prob is its own policy's; one adapter under two names is a control without effect."""
    out = tmp_path / "out"
    adapters = [str(made / "one"), f"other={made / 'two'}", f"again={made / 'one'}"]
    options = ["--model", str(made / "base"), "--env", "arith:0", "--num-tasks", str(NUM_TASKS)]
    limits = ["--max-turn-tokens", "24", "--seed", "3", "--out", str(out)]
    assert run_main(monkeypatch, *options, "--adapters", *adapters, *limits) == 0
    folders = {"base": None, "one": made / "one", "other": made / "two", "again": made / "one"}
    sampled: dict[str, list[tuple[int, ...]]] = {}
    for version, (name, folder) in enumerate(folders.items()):
        model: Any = load(made / "base")
        model = PeftModel.from_pretrained(model, str(folder)).eval() if folder else model
        records = list(read_records(out / name / "trajectories.jsonl"))
        assert len(records) == NUM_TASKS
        turns = [turn for record in records for turn in record.trajectory.turns]
        assert {span.version for turn in turns for span in turn.completion.version_spans} == {version}
        sampled[name] = [turn.completion.token_ids for turn in turns]
        for turn in turns[:4]:
            ids = [*turn.context_ids, *turn.completion.token_ids]
            expected = reference_logprobs(model, ids)[len(turn.context_ids) - 1 :]
            np.testing.assert_allclose(turn.completion.logprobs, expected, atol=1e-4)
        found = read_evaluation(out / name / "evaluation.json")
        assert found.policy["name"] == name
        assert found.policy["model"] == str(folder or made / "base")
    assert sampled["again"] == sampled["one"]
    assert len({str(tokens) for tokens in sampled.values()}) == 3
    comparison = json.loads((out / "comparison.json").read_text())
    pairs = [(each["policy"], each["less"]) for each in comparison["differences"]]
    assert pairs == [
        ("one", "base"),
        ("other", "base"),
        ("again", "base"),
        ("other", "one"),
        ("again", "one"),
        ("again", "other"),
    ]
    assert json.loads((out / "one" / "evaluation.json").read_text())["against"]["policy"]["name"] == "base"
    assert "again less one, paired by task" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("adapters", "complaint"),
    [
        (["{made}/one", "{made}/sub/one"], "2 are called 'one'; name each, NAME=PATH"),
        (["{made}/base_too/base"], "'base' is the name of the model alone"),
        (["a/b={made}/one"], "the name 'a/b' is also that of a folder"),
        (["{made}/nowhere"], "holds no adapter_config.json"),
        (["{made}/base=x"], "the name"),
        (["whole={made}/base"], "A whole model is --model"),
        (["{made}/of_twin"], "was trained beside"),
        (["{made}/of_deep"], "it adapts model.layers.2"),
        (["{made}/of_tokens"], "engines are not given adapters of embed_tokens here; evaluate it merged"),
        (["{made}/huge"], "has rank 513; engines have room for 512"),
    ],
)
def test_adapters_that_cannot_be_evaluated_together_are_refused_before_anything_starts(
    made: Path, tmp_path: Path, monkeypatch, capsys, adapters: list[str], complaint: str
) -> None:
    words = [word.format(made=made) for word in adapters]
    options = ["--model", str(made / "base"), "--env", "arith:0", "--num-tasks", "24"]
    assert run_main(monkeypatch, *options, "--out", str(tmp_path / "out"), "--adapters", *words) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_everything_that_is_wrong_is_told_at_once(made: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)called 'one'.*trained beside.*has rank 513"):
        find_adapters(
            [str(made / name) for name in ("one", "sub/one", "of_twin", "huge")],
            find_policy(str(made / "base")),
        )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "{made}/base", "--against", "{made}/base"], "--against with --adapters"),
        (["--model", "{made}/one"], "it is the model that they are beside"),
        (["--endpoint", "http://x/v1", "--endpoint-model", "m"], "--adapters has no effect with --endpoint"),
        (["--model", "{made}/base", "--reward", "judge:{tmp}/judge.toml"], "evaluate one at a time"),
    ],
)
def test_options_that_do_not_go_with_adapters_are_refused(
    made: Path, tmp_path: Path, monkeypatch, capsys, options: list[str], complaint: str
) -> None:
    judge = 'mode = "pointwise"\ntemplate = "Is {answer} right?"\npolicy = "self"\n'
    (tmp_path / "judge.toml").write_text(judge)
    filled = [option.format(made=made, tmp=tmp_path) for option in options]
    rest = ["--env", "arith:0", "--num-tasks", "24", "--adapters", str(made / "two")]
    assert run_main(monkeypatch, *filled, *rest, "--out", str(tmp_path / "out")) == 2
    assert complaint in capsys.readouterr().err


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose checkpoint is an adapter beside the model `base`."""
    base = make_tiny_model(tmp_path / "base", tied=True)
    own: Learner = learner(base)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000003"
    own.checkpoint(str(checkpoint), {})
    assert (checkpoint / HASHES).is_file()
    (tmp_path / "run" / "config.json").write_text(json.dumps(asdict(Config())))
    return tmp_path / "run"


def test_a_runs_newest_adapter_is_taken_and_only_beside_the_weights_it_was_trained_beside(run: Path) -> None:
    base = run.parent / "base"
    (adapter,) = find_adapters([str(run)], find_policy(str(base)))
    assert (adapter.name, adapter.source.step, adapter.manifest.version) == ("run", 3, 1)
    assert adapter.source.model == str(run / "checkpoints" / "step_000003")
    make_tiny_model(base, tied=True, seed=5)  # trained on, in its place
    with pytest.raises(ValueError, match="use the model that it was trained with"):
        find_adapters([str(run)], find_policy(str(base)))


def test_adapters_of_a_mixture_are_refused(tmp_path: Path) -> None:
    base = make_tiny_mixture(tmp_path / "base")
    make_adapter(base, tmp_path / "one", seed=1, targets=["q_proj"])
    with pytest.raises(ValueError, match="mixture of experts, whose adapters engines are not given here"):
        find_adapters([str(tmp_path / "one")], find_policy(str(base)))
