"""What of a reward is refused before a run starts, with the policy's tokenizer and the tasks in hand."""

from dataclasses import replace

import pytest

from recipes.calc_grpo import CONFIG
from recipes.char_tokenizer import make_char_tokenizer
from rl.inputs import input_digests
from rl.machine import Machine
from rl.reward_checks import judge_problems, reward_fit_problems
from rl.validation import ConfigError, validate
from rollout.renderer import ChatMLRenderer

RENDERER = ChatMLRenderer(make_char_tokenizer())
OWN = 'policy = "self"\nmode = "agreement"\ntemplate = "{first}={second}? Y/N"\n'
REMOTE = 'endpoint = "http://localhost:9/v1"\nmodel = "m"\ntemplate = "Rate {answer}"\n'


@pytest.fixture
def config_of(tmp_path):
    def config(text, **changes):
        path = tmp_path / "judge.toml"
        path.write_text(text)
        return replace(CONFIG, reward=f"judge:{path}", **changes)

    return config


def test_a_sound_judge_is_not_refused(config_of):
    for text in (OWN, REMOTE):
        assert list(judge_problems(config_of(text), RENDERER)) == []
        validate(config_of(text), Machine.here())
    assert list(judge_problems(replace(CONFIG, reward="calc"), RENDERER)) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (OWN + 'choices = ["yes", "no"]', "choices: 'yes' is 3 tokens here, expected one"),
        (OWN.replace("? Y/N", "?" + "x" * 300), "raise --context-length above 3"),
    ],
)
def test_a_question_that_this_policy_cannot_be_asked_is_refused(config_of, text, problem):
    (told,) = judge_problems(config_of(text), RENDERER)
    assert problem in told


def test_a_reference_that_the_tasks_do_not_have_is_refused(config_of):
    (told,) = judge_problems(config_of(OWN, env="grid", level=0), RENDERER)
    assert "of grid has none; use mode pointwise without {reference}" in told


@pytest.mark.parametrize(
    ("text", "changes", "problem"),
    [
        (OWN, {"algorithm": "gdpo"}, "as in --reward-weights judge/score 1"),
        (REMOTE, {"determinism": "exact"}, "a judge behind an endpoint need not say the same again"),
    ],
)
def test_what_does_not_go_with_a_judge_is_refused(config_of, text, changes, problem):
    (told,) = reward_fit_problems(config_of(text, **changes))
    assert problem in told


def test_a_wrong_file_is_a_wrong_setting(config_of):
    with pytest.raises(ConfigError, match="unknown key 'templat'; did you mean 'template'"):
        validate(config_of(OWN.replace("template", "templat")), Machine.here())


def test_a_resumed_run_notices_that_its_judge_has_changed(config_of):
    before = input_digests(config_of(OWN))["reward"]
    assert before == input_digests(config_of(OWN))["reward"]
    assert before != input_digests(config_of(OWN + "low = -1"))["reward"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hacking_window": 3}, "hacking_window = 3: expected at least 5 steps, or 0 for none"),
        ({"hacking_window": 0, "hacking_reference": "reward/exact"}, "there is no monitor; leave it out"),
        ({"hacking_reference": "rollout/succes"}, "did you mean 'rollout/success'"),
    ],
)
def test_a_monitor_of_nothing_is_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        validate(replace(CONFIG, **changes), Machine.here())
