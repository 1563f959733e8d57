import dataclasses
import re

import pytest

from recipes.cli import BAD_CONFIG, parse
from rl.config import Config


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What is printed for a command line that is refused with the status for it."""
    with pytest.raises(SystemExit) as caught:
        parse(Config(), argv)
    assert caught.value.code == BAD_CONFIG
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_any_field_can_be_overridden_and_the_rest_stay():
    default = Config(num_steps=7)
    given = [
        "--algorithm",
        "rloo",
        "--entropy-coeff",
        "0.1",
        "--learning-rate",
        "0",
        "--sabotage",
        "swap_rows",
    ]
    expected = dataclasses.replace(
        default, algorithm="rloo", entropy_coeff=0.1, learning_rate=0.0, sabotage="swap_rows"
    )
    assert parse(default, given) == expected


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse(Config(), ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    boxed = re.sub(r"[│╭╮╰╯─\s]+", " ", text)
    for field in dataclasses.fields(Config):
        option = "--" + field.name.replace("_", "-")
        # The option, its kind, and words before "(default"; a field without a docstring has none.
        explained = re.search(
            rf"{option}(, --no-\S+)? (?:\S+ )??(?P<words>[A-Za-z0-9][^()]*\w[^(]*)\(", boxed
        )
        assert explained, f"{option} is not explained"
        assert len(explained["words"].split()) > 1, f"{option} is not explained"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--algoritm", "--algorithm"), ("--learning-rat", "--learning-rate"), ("--group-sise", "--group-size")],
)
def test_a_wrong_option_is_refused_with_the_nearest_right_one(capsys, wrong: str, right: str):
    text = refused(capsys, wrong, "1")
    assert wrong in text
    assert re.search(rf"meant:\W+{right}\b", text)


def test_a_value_of_the_wrong_type_is_refused(capsys):
    assert "--num-steps" in refused(capsys, "--num-steps", "many")


def test_a_choice_that_does_not_exist_is_refused_with_the_choices(capsys):
    text = refused(capsys, "--device", "gpu")
    assert "cuda" in text
    assert "--device" in text


def test_a_configuration_that_cannot_run_is_refused_with_the_remedy(capsys):
    text = refused(capsys, "--num-groups", "5", "--group-size", "5")
    assert "micro_batch_size = 32 does not divide the 25 trajectories" in text
    assert "use 25" in text


def test_smoke_changes_defaults_and_an_option_beside_it_still_counts():
    smoke = parse(Config(), ["--smoke", "--num-steps", "5"])
    assert smoke.smoke
    assert smoke.num_steps == 5
    assert smoke.eval_tasks < Config().eval_tasks


@pytest.mark.parametrize(
    ("argv", "env", "level"),
    [
        (["--env", "grid:0"], "grid", 0),
        (["--env=grid:0"], "grid", 0),
        (["--env", "grid", "--level", "0"], "grid", 0),
        (["--env", "grid:0", "--level", "0"], "grid", 0),
        (["--level", "0", "--num-steps", "3", "--env", "grid:0"], "grid", 0),
        (["--env", "calc:2"], "calc", 2),
        (["--env", "calc"], "calc", 1),
        (["--level", "2"], "calc", 2),
        (["--env", "envs.tasks.grid:ENV:0"], "envs.tasks.grid:ENV", 0),
        (["--env", "envs.tasks.calc:ENV"], "envs.tasks.calc:ENV", 1),  # its levels begin at the default
    ],
)
def test_an_environment_may_name_its_level(argv: list[str], env: str, level: int):
    config = parse(Config(), argv)
    assert (config.env, config.level) == (env, level)


def test_an_environment_in_a_file_may_name_its_level(tmp_path):
    file = tmp_path / "my_env.py"
    file.write_text("from envs.tasks.calc import ENV\n")
    assert parse(Config(), ["--env", f"{file}:ENV:2"]) == Config(env=f"{file}:ENV", level=2)
    assert parse(Config(), ["--env", f"{file}:ENV"]) == Config(env=f"{file}:ENV", level=1)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--env", "gird:0"], "unknown environment 'gird'; did you mean 'grid'?"),
        (["--env", "gird"], "unknown environment 'gird'; did you mean 'grid'?"),
        (["--env", "grid:9"], "unknown level of environment 'grid' '9' (known: 0, 1, 2, 3, 4, 5)"),
        (["--env", "grid:easy"], "'easy' is no level; expected a whole number, as in 'grid:1'"),
        (["--env", "grid:"], "'' is no level"),
        (["--env", "grid:-1"], "'-1' is no level"),
        (["--env", "calc:2", "--level", "3"], "--env calc:2 names level 2, and --level 3 another"),
        (["--env", "grid"], "--env grid: say which level, as in --env grid:0 (0, 1, 2, 3, 4, 5)"),
        (["--env", "envs.tasks.grid:ENV"], "say which level, as in --env envs.tasks.grid:ENV:0"),
    ],
)
def test_a_level_that_cannot_be_meant_is_refused(capsys, argv: list[str], told: str):
    assert told in refused(capsys, *argv)
