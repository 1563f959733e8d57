"""What a judge file may say: every mistake is refused before a run starts, with what to do."""

import json
import re
from pathlib import Path

import pytest

from envs.registry import resolve_env
from rewards.base import resolve_reward
from rewards.judge_file import JudgeSpec, read_judge

OWN = 'mode = "agreement"\npolicy = "self"\ntemplate = "Is {first} equal to {second}? Y or N"\n'
REMOTE = 'endpoint = "http://localhost:9/v1"\nmodel = "m"\ntemplate = "Rate {answer}"\n'


def write(tmp_path, text, name="judge.toml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_toml_and_json_say_the_same(tmp_path):
    as_json = {"mode": "agreement", "policy": "self", "template": "Is {first} equal to {second}? Y or N"}
    spec = read_judge(write(tmp_path, OWN))
    assert spec == read_judge(write(tmp_path, json.dumps(as_json), "judge.json"))
    assert spec.labels == ("Y", "N")
    assert JudgeSpec(mode="pairwise", policy="self", template="{first} {second}").labels == ("A", "B")


def test_the_judge_in_the_documentation_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    told = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", told, re.DOTALL)
    assert read_judge(write(tmp_path, text)).mode == "agreement"


def test_a_whole_number_is_a_number(tmp_path):
    assert read_judge(write(tmp_path, REMOTE + "high = 10")).high == 10.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (OWN + "choises = []", "unknown key 'choises'; did you mean 'choices'?"),
        (OWN + 'mode2 = "x"', "unknown key 'mode2'; did you mean 'mode'?"),
        (OWN.replace("agreement", "pairwize"), "unknown mode 'pairwize'; did you mean 'pairwise'?"),
        (OWN.replace("{first}", "{frist}"), "unknown field 'frist'; did you mean 'first'?"),
        (OWN.replace("{first}", "it"), "template lacks {first}"),
        (OWN.replace("self", "other"), "policy = 'other'; expected 'self'"),
        (OWN + 'endpoint = "http://a/v1"', 'both policy and endpoint; expected policy = "self", or'),
        ('template = "{answer}"', "neither policy nor endpoint"),
        (OWN + "max_tokens = 9", "max_tokens has no effect on policy; leave it out"),
        (OWN + 'model = "m"', "model has no effect on policy"),
        (REMOTE + 'choices = ["A", "B"]', "choices has no effect on an endpoint"),
        (OWN + 'choices = ["A", "A"]', "expected two different texts"),
        (OWN + 'choices = "AB"', "choices = 'AB' is a str; expected a list of texts"),
        (REMOTE + "json_mode = 1", "json_mode = 1 is a int; expected a bool"),
        (REMOTE + "max_tokens = true", "max_tokens = True is a bool; expected a int"),
        (REMOTE + "max_tokens = 0", "max_tokens = 0; expected more than 0, and finite"),
        (
            REMOTE + "request_s = inf",
            "expected more than 0, and finite: nothing is unlimited",
        ),
        (REMOTE + "low = 1", "low = 1, high = 1; expected finite ones, low first"),
        (REMOTE + "temperature = -1", "temperature = -1.0; expected 0 or more"),
        (REMOTE.replace('model = "m"\n', ""), "endpoint without model"),
        (REMOTE.replace("http:", "ftp:"), "expected an address like"),
        (REMOTE.replace("localhost", "me:secret@localhost"), "holds a user name or password"),
        (REMOTE + 'key_variable = "NO_SUCH_KEY_HERE"', "there is no such environment variable"),
        (REMOTE + "length_coef = 0.1", "length_coef and length_scale have an effect only together"),
        (REMOTE + "length_coef = 0.1\nlength_scale = 9", "needs length_reference"),
        (OWN + "length_reference = 9", "length_reference has no effect here"),
        (REMOTE.replace("{answer}", "{task}"), "neither {answer} nor {transcript}"),
        (OWN.replace("template", "templat"), "unknown key 'templat'; did you mean 'template'?"),
        ('policy = "self"', "it has no template"),
        ("policy = self", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_do(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(problem)) as refused:
        resolve_reward(f"judge:{path}", resolve_env("calc"))
    assert str(refused.value).startswith(f"judge {path!r}: ")
    assert "secret" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml': it cannot be read: No such file"):
        read_judge(str(tmp_path / "none.toml"))
    with pytest.raises(ValueError, match=r"ends in \.toml or \.json"):
        read_judge(write(tmp_path, OWN, "judge.yaml"))
    with pytest.raises(ValueError, match="it holds a list"):
        read_judge(write(tmp_path, "[1]", "judge.json"))
